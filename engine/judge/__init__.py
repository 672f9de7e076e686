"""Judging a candidate: recorded runs are done again with it, and what comes of them is scored, or compared."""
