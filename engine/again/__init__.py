"""Doing a run of the past again: the real engine in memory, whose calls are answered by what was recorded, or made."""
