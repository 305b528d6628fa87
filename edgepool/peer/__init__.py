"""The public API: an async context manager, and the values it returns."""
