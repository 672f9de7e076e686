"""What partitions have taken, held back until it is durable: what is said before that may be done again, or never have been."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from dspex.engine.runtime.arrival import Arrival, Effects

WhereTaken: TypeAlias = tuple[str, str, int]
"""Topology, stage and index of a partition."""


_HEARD = ("taken", "commit", "claimed", "fenced", "released")


class HandledArrival(NamedTuple):
    """One arrival, handled. `at`: when, in seconds since the epoch. `calls`: the recorded operators of its stage."""

    partition: WhereTaken
    arrival: Arrival
    effects: Effects
    calls: Mapping[str, Any]
    at: float


class DurableArrivals:
    """Hears what is taken and what is committed, and hands on the one when it hears of the other.

    Args:
        each: called for every arrival whose commit is stored.
    """

    def __init__(self, each: Callable[[HandledArrival], None]) -> None:
        self._each = each
        self._waiting: dict[WhereTaken, deque[HandledArrival]] = {}

    def __call__(self, name: str, facts: Mapping[str, Any]) -> None:
        """Hear what happens; see `telemetry.HAPPENINGS`."""
        if name not in _HEARD:
            return
        p = (facts["topology"], facts["stage"], facts["partition"])
        if name == "taken":
            one = HandledArrival(p, facts["arrival"], facts["effects"], facts["calls"], time.time())
            self._waiting.setdefault(p, deque()).append(one)
        elif name == "commit":
            self._committed(p, facts["place"])
        else:  # what was not stored is taken again, here or elsewhere
            self._waiting.pop(p, None)

    def _committed(self, p: WhereTaken, last: object) -> None:
        waiting = self._waiting.get(p, deque())
        while waiting:
            one = waiting.popleft()
            self._each(one)
            if one.arrival.place == last:
                return
