"""Verbs about runs of the past: what they did, and whether they would do it again."""
