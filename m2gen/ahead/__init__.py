"""Ahead-of-time compilation, behind `m2gen compile`: which kernels are needed (`record`), and making them (`build`)."""
