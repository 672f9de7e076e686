"""How the benchmarks read their command lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def positive(text: str) -> int:
    """A number of at least 1. For argparse, whose message for anything else names the option and what was written."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return number


def one_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads some of these words, with commas between them."""

    def read(text: str) -> list[str]:
        words = text.split(",")
        if wrong := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"there is no {wrong[0]!r} (there is: {', '.join(known)})")
        return words

    return read
