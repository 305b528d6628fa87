"""edgepool."""
