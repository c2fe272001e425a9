"""Products with block-diagonal matrices."""
