"""What runs a plan: tensors in, tensors out; a file an op and language."""
