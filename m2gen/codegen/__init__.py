"""KernelSpec in, source text out; no torch, no triton."""
