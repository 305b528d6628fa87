"""Decisions: pure, synchronous, deterministic. Nothing here awaits, logs, reads clocks or draws lots."""
