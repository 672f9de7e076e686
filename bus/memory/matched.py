"""What readers of an in-memory stream have found, so that none looks at every message again."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import chain

from dspex.bus.message import Message
from dspex.bus.subjects import matches

_WILD = re.compile(r"[*>]")


def is_wild(pattern: str) -> bool:
    """Whether it may take more than one subject."""
    return "*" in pattern or ">" in pattern


def taken(pattern: str, subjects: Collection[str]) -> list[str]:
    """Those of the subjects that a pattern takes."""
    if not is_wild(pattern):
        return [pattern] if pattern in subjects else []
    begin = _WILD.split(pattern)[0]
    return [subject for subject in subjects if subject.startswith(begin) and matches(pattern, subject)]


class Matched:
    """What some filters take of a stream. `sequences`: in order, also of what was removed."""

    def __init__(self, filters: Sequence[str], stored: Mapping[str, Sequence[int]]) -> None:
        self._takes = dict.fromkeys((f for f in filters if not is_wild(f)), True)  # subject → whether they do
        self._patterns = [(_WILD.split(f)[0], f) for f in filters if f not in self._takes]
        self.sequences = sorted(chain.from_iterable(mine for subject, mine in stored.items() if self.takes(subject)))

    def first(self, messages: Mapping[int, Message], start: int, stop: int) -> int:
        """The first one from `start` to `stop` that is still there; `stop` + 1 where there is none."""
        for at in range(bisect_left(self.sequences, start), len(self.sequences)):
            if self.sequences[at] > stop:
                break
            if self.sequences[at] in messages:
                return self.sequences[at]
        return stop + 1

    def takes(self, subject: str) -> bool:
        """Whether one of the filters takes a subject."""
        if (known := self._takes.get(subject)) is None:
            known = any(subject.startswith(begin) and matches(pattern, subject) for begin, pattern in self._patterns)
            self._takes[subject] = known
        return known


class Filters:
    """What each set of filters that was asked for takes of a stream."""

    def __init__(self) -> None:
        self._matched: dict[tuple[str, ...], Matched] = {}
        self._takers: dict[str, list[Matched]] = {}  # subject → those that take it

    def stored(self, subject: str, sequence: int) -> None:
        """Note a message that was stored."""
        if (takers := self._takers.get(subject)) is None:
            takers = self._takers[subject] = [one for one in self._matched.values() if one.takes(subject)]
        for one in takers:
            one.sequences.append(sequence)

    def matched(self, filters: Sequence[str], stored: Mapping[str, Sequence[int]]) -> Matched:
        """What these filters take. `stored`: the sequences that there are, by their subjects."""
        if (found := self._matched.get(key := tuple(filters))) is None:
            found = self._matched[key] = Matched(filters, stored)
            for subject, takers in self._takers.items():
                takers += [found] if found.takes(subject) else []
        return found
