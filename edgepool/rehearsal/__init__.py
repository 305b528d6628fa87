"""Whole peers, from codec to folder, under faults on an event loop with virtual time; from a seed."""
