"""Answers in the memory of a pool's process: those used last, up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from dspex.bus.records import Outputs

MEMORY: Final = 64 << 20  # bytes of outputs, as they are packed
OVERHEAD: Final = 600  # bytes that an answer takes besides


class CachedAnswer(NamedTuple):
    """An answer that may be given again.

    Attributes:
        outputs, lm, program, dspy_version, warning: as the child answered.
        call: whose answer it was.
        at: when that was, on the clock of whoever keeps it.
        size: bytes of the packed outputs.
    """

    outputs: Outputs
    lm: str
    program: str
    dspy_version: str
    call: str
    at: float
    size: int
    warning: str = ""


class KeptAnswers:
    """Answers by key; the one that was used longest ago goes first.

    Attributes:
        bytes: that they take.
    """

    def __init__(self, most: int = MEMORY) -> None:
        self._most = most
        self._kept: OrderedDict[bytes, CachedAnswer] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, young: float) -> CachedAnswer | None:
        """The answer, if it came after `young`."""
        found = self._kept.get(key)
        if found is None or found.at <= young:
            return None
        self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep an answer, in place of an older one."""
        self._drop(key)
        self._kept[key] = answer
        self.bytes += answer.size + OVERHEAD
        while self.bytes > self._most:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        if (before := self._kept.pop(key, None)) is not None:
            self.bytes -= before.size + OVERHEAD
