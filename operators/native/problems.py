"""Errors about what a user wrote in a topology, one at a time or all at once, and the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from heapq import nsmallest
from itertools import islice
from typing import TypeVar

from dspex.bus.errors import Problem, TopologyError

T = TypeVar("T")

# The names may be those of an event's fields, and whoever publishes can give any number of them, of any length.
_COMPARED = 100  # each costs up to 40 us
_SHOWN, _LENGTH = 20, 80


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that is most like `word`; None if none is. `cutoff`: how similar it must be, from 0 to 1."""
    known = {w.lower(): w for w in islice(words, _COMPARED)}
    return next((known[w] for w in difflib.get_close_matches(word.lower(), known, n=1, cutoff=cutoff)), None)


def listed(names: Collection[str]) -> str:
    """The names in alphabetical order, with commas; of very many the first, and how many more there are."""
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(n if len(n) <= _LENGTH else f"{n[:_LENGTH]}…" for n in nsmallest(_SHOWN, names)) + more


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`did you mean map?`, or a list of all known words where none is similar."""
    known = list(words)
    near = nearest(word, known)
    return f"did you mean {near}?" if near else f"one of: {', '.join(known)}"


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
