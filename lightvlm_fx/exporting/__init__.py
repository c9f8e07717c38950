"""From a model and a schedule to an artifact: what drives the compiler and hands its stages to the exporters."""
