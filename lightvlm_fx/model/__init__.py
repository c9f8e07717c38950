"""The source model: where its decoder is, what a batch of it looks like, and its graphs."""
