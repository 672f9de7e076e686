"""What woke operators for a run. A later event of another run may take what waits for one of its own: then nothing does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dspex.engine.client.runs.history import History
from dspex.engine.graph.manifest import Manifest


class WokenNode(NamedTuple):
    """An operator with state that there was. `timers`: of the run, that came due there: their keys and names."""

    topology: str
    node: str
    timers: list[list[str]]


def woken_in(past: History, applied: Mapping[str, Manifest]) -> tuple[WokenNode, ...]:
    """The operators with state that a run may have come to, with its timers that came due."""
    known = [(name, node) for name in past.topologies if name in applied for node in applied[name].states]
    timers = {at: set[tuple[str, str]]() for at in known}
    for taken in past.taken:
        for node, key, name in taken.woke:
            timers.setdefault((taken.partition[0], node), set()).add((key, name))
    return tuple(WokenNode(*at, sorted(map(list, found))) for at, found in sorted(timers.items()))
