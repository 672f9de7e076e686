"""The name that was probably meant, for whoever wrote one that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from heapq import nsmallest
from itertools import islice

# The names may be those of an event's fields, and whoever publishes can give any number of them, of any length.
_COMPARED = 100  # each costs up to 40 us
_SHOWN, _LENGTH = 20, 80
_MOST = 50  # names that an error lists where none is similar


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that is most like `word`; None if none is. `cutoff`: how similar it must be, from 0 to 1."""
    known = {w.lower(): w for w in islice(words, _COMPARED)}
    return next((known[w] for w in difflib.get_close_matches(word.lower(), known, n=1, cutoff=cutoff)), None)


def listed(names: Collection[str]) -> str:
    """The names in alphabetical order, with commas; of very many the first, and how many more there are."""
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(n if len(n) <= _LENGTH else f"{n[:_LENGTH]}…" for n in nsmallest(_SHOWN, names)) + more


def did_you_mean(word: str, words: Iterable[str], otherwise: str = "there is none") -> str:
    """`did you mean map?`, or a list of the known words where none is similar. `otherwise`: the text where there are none."""
    known = list(dict.fromkeys(words))
    if near := nearest(word, known):
        return f"did you mean {near}?"
    more = f", and {len(known) - _MOST} more" if len(known) > _MOST else ""
    return f"one of: {', '.join(known[:_MOST])}{more}" if known else otherwise
