"""Published methods as values: each a file with its options, its source and its tensor code. Making one needs no torch."""
