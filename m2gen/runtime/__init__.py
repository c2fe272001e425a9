"""From a problem to a running computation: the only layer that touches devices, triton and compilers."""
