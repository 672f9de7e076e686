"""How the benchmarks read their command lines."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A number of at least 1. For argparse, whose message for anything else names the option and what was written."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return number
