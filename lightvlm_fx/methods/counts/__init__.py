"""How many tokens of a picture stay at a cut, where that is neither a share nor one number, one file each."""
