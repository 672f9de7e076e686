"""Options that many verbs have, each checked before anything is done: who mistypes one is told so at once, server or not."""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

import typer

from dspex.bus.errors import ConfigError

MOST: Final = 10**9  # of what a verb shows or counts
MOST_SEQUENCE: Final = (1 << 63) - 1


def duration(*names: str, help: str, alone: bool = False) -> Any:
    """An option that is a duration. `alone`: or nothing, as text: "". Raises ConfigError (DX102) for what is none."""
    return typer.Option(*names, metavar="[DUR]" if alone else "DUR", help=help, callback=_or_alone if alone else _duration)


def how_many(*names: str, help: str) -> Any:
    """An option that says how many there may be."""
    return typer.Option(*names, metavar="N", min=1, max=MOST, help=help)


def finite(value: float) -> float:
    """A number that JSON can hold. Raises ConfigError (DX105)."""
    if not isfinite(value):
        raise ConfigError(f"a value of {value} cannot be compared", code="DX105", fix="write a finite one, as 0.75")
    return value


def _duration(value: str | None) -> str | None:
    from dspex.bus.settings.duration import seconds

    if value is not None:
        seconds(value)
    return value


def _or_alone(value: str | None) -> str | None:
    return value if value == "" else _duration(value)
