"""Optimizers of DSPy as jobs: they run in a child, over the journal of their call."""
