"""`lightvlm eval`, `show` and `demo`: quality on the bundled model."""
