"""Where the ways of an event part that a gather brings together again: there it gets an id for that, which all ways inherit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspex.bus.message import derived_id
from dspex.engine.graph.context import Handler


def fork_step(gathers: Sequence[tuple[str, str]], after: Handler) -> Handler:
    """`after`, with the ids that gathers know an event by. `gathers`: their names, each with what ids are derived from."""

    def step(data: object, walk: Any) -> None:
        before = walk.origin
        forks = dict(before.forks or {})
        for name, node_id in gathers:
            walk.counts[node_id] = ordinal = walk.counts.get(node_id, -1) + 1
            forks[name] = derived_id(before.id, node_id, ordinal)
        walk.origin = before._replace(forks=forks)
        after(data, walk)
        walk.origin = before

    return step
