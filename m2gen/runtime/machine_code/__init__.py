"""What a compiler made of a kernel, read again."""
