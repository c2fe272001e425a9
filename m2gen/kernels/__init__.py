"""Kernel specs: what a generated kernel is, as data. Planner and codegen meet here."""
