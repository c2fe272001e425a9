"""Benchmarks: `python -m bench cpu`. Measured, never asserted."""
