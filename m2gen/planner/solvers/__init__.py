"""Ways of doing a problem, one file each."""
