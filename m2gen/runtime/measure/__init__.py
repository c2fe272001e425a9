"""What measures plans, tries them, and keeps what was found."""
