"""The ports, and the one loop that performs what the core decides."""
