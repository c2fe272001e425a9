"""Gates of gated linear units: the problem, what can be done, and what it costs."""
