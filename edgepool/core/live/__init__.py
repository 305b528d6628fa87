"""Live streams: what a publisher keeps and sends, and what a subscriber makes of it."""
