"""The arguments of a metric: texts, and one or several references. Anything else is InvalidInput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from dspex.bus.errors import InvalidInput


def references_of(metric: str, actual: object, expected: object) -> list[str]:
    """The references in `expected`, at least one. Raise InvalidInput for anything but text, and for no reference."""
    text_of(metric, "actual", actual)
    found = texts_of(metric, "expected", expected)
    if not found:
        raise InvalidInput(f"{metric}: expected has no reference to compare with")
    return found


def texts_of(metric: str, side: str, value: object) -> list[str]:
    """One text or several, as a list. Raise InvalidInput for anything else."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray | memoryview):
        raise InvalidInput(f"{metric}: {side} must be text or a list of texts, not {type(value).__name__}")
    return [text_of(metric, f"an item of {side}", text) for text in cast("Sequence[object]", value)]


def text_of(metric: str, what: str, value: object) -> str:
    """The value, unchanged. Raise InvalidInput if it is no text. `what`: its name in the error."""
    if not isinstance(value, str):
        raise InvalidInput(f"{metric}: {what} must be text, not {type(value).__name__}")
    return value
