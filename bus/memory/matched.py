"""What readers of an in-memory stream have found, so that none looks at every message again."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from dspex.bus.message import Message
from dspex.bus.subjects import matches

_WILD = re.compile(r"[*>]")


class Matched:
    """What some filters take of a stream. `sequences`: in order, also of what was removed; all up to `looked` are in it."""

    def __init__(self, filters: Sequence[str]) -> None:
        self.sequences, self.looked = list[int](), 0
        self._takes = dict.fromkeys((f for f in filters if not _WILD.search(f)), True)  # subject → whether they do
        self._patterns = [(_WILD.split(f)[0], f) for f in filters if f not in self._takes]

    def look(self, messages: Mapping[int, Message], first: int, last: int) -> None:
        """Take in what was stored since."""
        for sequence in range(max(self.looked + 1, first), last + 1):
            if (message := messages.get(sequence)) is not None and self.takes(message.subject):
                self.sequences.append(sequence)
        self.looked = last

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
