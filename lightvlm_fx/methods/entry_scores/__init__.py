"""What cache entries are worth, one file each."""
