"""What becomes of cache entries that do not stay, one file each."""
