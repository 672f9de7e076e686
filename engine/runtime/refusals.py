"""Which arrival the server refuses: found by committing the arrivals of a refused commit one at a time."""

from __future__ import annotations

from collections import Counter

from dspex.bus import telemetry
from dspex.bus.errors import DataError, DspexError, PayloadTooLarge
from dspex.bus.seldom import Seldom, logger
from dspex.engine.log.rows import Place
from dspex.engine.runtime.partition import Partition

NAMES_CONTENT = (DataError, PayloadTooLarge)  # refusals for what a message is; no other one is blamed on an event
TWICE = 2  # the first refusal may be that of a server that was full, or about to stop
_log = logger("dspex.engine")


class Refusals:
    """What the server refused, by partition. It outlives the claim that follows each failed commit."""

    def __init__(self) -> None:
        self._one_by_one: dict[int, int] = {}  # index → arrivals that get a commit each after the next claim
        self._counted: Counter[tuple[int, Place]] = Counter()
        self._poison: dict[int, dict[Place, str]] = {}
        self._seldom = Seldom(_log)

    def failed(self, p: Partition, error: DspexError) -> None:
        """A commit of a partition failed."""
        if isinstance(error, NAMES_CONTENT):
            self._one_by_one[p.index] = p.unsure
            self._suspect(p, error)
            return
        if p.one_by_one:
            self._one_by_one[p.index] = p.unsure
        self._seldom.warning("a commit failed: its partition is claimed again", why=error.message, **p.where)

    def _suspect(self, p: Partition, error: DspexError) -> None:
        batch = p.flying
        if batch is None or batch.place is None:
            return
        telemetry.emit("refused", **p.where, arrivals=batch.arrivals, why=error.message)
        _log.error("the server refused a commit", why=error.message, partition=p.index, arrivals=batch.arrivals)
        if batch.arrivals == 1:
            self._counted[p.index, batch.place] += 1
            if self._counted[p.index, batch.place] >= TWICE:
                self._poison.setdefault(p.index, {})[batch.place] = error.message

    def apply(self, p: Partition) -> None:
        """Tell a partition that was just claimed what is known."""
        p.one_by_one = self._one_by_one.pop(p.index, 0)
        p.poison = self._poison.get(p.index, {})
