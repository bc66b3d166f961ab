"""Training: pure losses, one loop, and what makes it fast and safe beside it."""
