"""Short depthwise convolutions: the problem, what can be done, and what it costs."""
