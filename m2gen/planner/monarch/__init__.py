"""Planning of Monarch products."""
