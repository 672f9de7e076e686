"""Errors about what a user wrote in a topology, one at a time or all at once, and the name that was probably meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from dspex.bus.errors import Problem, TopologyError
from dspex.bus.settings.similar import did_you_mean as did_you_mean  # so that who says what is wrong finds all of it here
from dspex.bus.settings.similar import listed as listed
from dspex.bus.settings.similar import nearest as nearest

T = TypeVar("T")


def problem(code: str, message: str, fix: str) -> TopologyError:
    """An error in a topology. `code`: DX2xx; `fix`: what to write instead."""
    return TopologyError(message, code=code, fix=fix)


def wrong(name: str, value: object, fix: str) -> TopologyError:
    """The error for a value that an option does not take."""
    return problem("DX205", f"{name} cannot be {value!r}", fix)


def all_of(errors: Iterable[TopologyError]) -> None:
    """Raise the errors as one TopologyError with all their problems; nothing when there are none."""
    found = [p for e in errors for p in e.problems or [Problem(e.code, "error", "", e.node, None, None, e.message, e.fix)]]
    if found:
        raise TopologyError("; ".join(p.message for p in found), code=found[0].code, fix=found[0].fix, problems=found)


def all_errors(check: Callable[[T], object], values: Iterable[T]) -> None:
    """Check every value, and raise what is wrong with them as one TopologyError."""
    errors: list[TopologyError] = []
    for value in values:
        try:
            check(value)
        except TopologyError as e:
            errors.append(e)
    all_of(errors)
