"""Products with block-diagonal weights: the problem, what can be done, and what it costs."""
