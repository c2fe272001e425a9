"""Transposing copies."""
