"""Short convolutions, a filter a channel."""
