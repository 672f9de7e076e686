"""Metrics with DSPy's numbers: `exact_match`, `f1`, `passage_match` and others."""

from dspex.operators.native.metrics.metrics import *
