"""Metrics as users write them for DSPy's optimizers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any


def right(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.intent == prediction.intent)


def broken(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.nothing == prediction.intent)


def silent(example: Any, prediction: Any, trace: Any = None) -> None:
    """It gives no number."""


def endless(example: Any, prediction: Any, trace: Any = None) -> float:
    """The mean of nothing, say."""
    return float("nan")


def exact(example: Any, prediction: Any, trace: Any = None) -> Decimal:
    """A number of another type, as NumPy has them."""
    return Decimal(int(example.intent == prediction.intent))
