"""Problem and device limits in, Plan out; no torch, no triton, no device is ever asked."""
