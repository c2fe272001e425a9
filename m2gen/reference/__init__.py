"""Oracles: one obvious line per formula, plain torch, float64. Slow on purpose."""
