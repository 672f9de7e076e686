"""The boundary behind operators that are built from history: what came about before it goes no further.

An event came about when its source event was stored: that is how its id begins, and how the ids of all begin that is derived
from it. What a watermark brings out comes of many events, and later than all of them; it lies behind the boundary where it was
not due when the watermark was there. Behind a hop nobody can see that any more, so the id says so from the operator on.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from dspex.engine.graph.context import Build, Handler
from dspex.engine.graph.graph import Lane


def is_before(stored: float, boundary: float) -> bool:
    """Whether what was stored at a time lies before a boundary: in whole milliseconds, as ids have it."""
    return int(stored * 1000) < ceil(boundary * 1000)


def _head(milliseconds: int) -> str:
    """How an id of that time begins."""
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}"


class _Boundary:
    """`at`: how the first id behind it begins. Ids that begin with `before` are of what the watermark brought out before it."""

    def __init__(self, lane: Lane) -> None:
        first = ceil(lane.boundary * 1000)
        self.at, self.before, self._lane = _head(first), _head(first - 1), lane

    def told_apart(self, walk: Any) -> Any:
        """The origin of what came out of an operator, with an id that tells on which side of the boundary it is."""
        origin = walk.origin
        if walk.fired:
            timer = walk.tables.timers.rows[walk.fired]
            mark = self._lane.marks.get(timer.node, self._lane.mark)
            late = (timer.due if timer.kind == "mark" else origin.time) > mark
        elif not origin.sequence and not origin.id.startswith(self.before):  # a letter of what was brought out
            late = origin.id[:13] >= self.at or origin.time > self._lane.mark
        else:
            return origin
        head = max(origin.id[:13], self.at) if late else self.before
        return origin._replace(id=head + origin.id[13:])


class Gate:
    """Builds the operator that lets through what is behind the boundary. `left_out`: how much it did not, since the start."""

    def __init__(self, lane: Lane) -> None:
        self._boundary, self.left_out = _Boundary(lane), 0

    def __call__(self, outlets: Sequence[Handler]) -> Handler:
        boundary, (after,) = self._boundary, outlets

        def step(data: object, walk: Any) -> None:
            before = walk.origin
            origin = boundary.told_apart(walk)
            if origin.id[:13] < boundary.at:
                self.left_out += 1
                return
            walk.origin = origin
            after(data, walk)
            walk.origin = before

        return step


def told_apart(lane: Lane) -> Build:
    """Lets everything through, with ids that tell on which side of the boundary it is."""
    boundary = _Boundary(lane)

    def build(outlets: Sequence[Handler]) -> Handler:
        (after,) = outlets

        def step(data: object, walk: Any) -> None:
            before, walk.origin = walk.origin, boundary.told_apart(walk)
            after(data, walk)
            walk.origin = before

        return step

    return build
