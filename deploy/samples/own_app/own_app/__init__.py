"""A Flower app of one's own, small enough to copy."""
