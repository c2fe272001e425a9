"""What is known of the devices, as data."""
