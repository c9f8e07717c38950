"""What cannot be derived from a model, as data: one small file a topic, no rewriting."""
