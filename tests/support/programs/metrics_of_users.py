"""Metrics as users write them for DSPy's optimizers."""

from __future__ import annotations

from typing import Any


def right(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.intent == prediction.intent)


def broken(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.nothing == prediction.intent)


def silent(example: Any, prediction: Any, trace: Any = None) -> None:
    """It gives no number."""
