"""What becomes of the tokens that a cut drops, one file each."""
