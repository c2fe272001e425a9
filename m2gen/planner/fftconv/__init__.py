"""The planning of long convolutions: the problem, four solvers, their steps and their cost."""
