"""Runs of the past: which there are, and what each of them did."""
