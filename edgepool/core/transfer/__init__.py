"""Moving and keeping twin data: who sends what, how fast, and what may be dropped."""
