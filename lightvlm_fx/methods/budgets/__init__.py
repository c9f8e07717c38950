"""How the layers share a cache's capacity, one file each."""
