"""What partitions have taken, and is durable: what is said before that may be done again, or never have been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from dspex.engine.runtime.arrival import Arrival, Effects

WhereTaken: TypeAlias = tuple[str, str, int]
"""Topology, stage and index of a partition."""


class HandledArrival(NamedTuple):
    """One arrival, handled. `at`: when, in seconds since the epoch. `calls`: the recorded operators of its stage."""

    partition: WhereTaken
    arrival: Arrival
    effects: Effects
    calls: Mapping[str, Any]
    at: float
