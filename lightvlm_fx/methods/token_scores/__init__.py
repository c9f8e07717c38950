"""What a cut ranks visual tokens by, one file each."""
