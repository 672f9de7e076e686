"""How many children a pool is to have, and how many of them each of its parents: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias


class ScaleBounds(NamedTuple):
    """How a pool is sized by its backlog (`pools.*.scale`). `least`, `most`: children, of all parents together. `cooldown`:
    seconds for which what was needed stays.
    """

    least: int
    most: int
    cooldown: float

    def within(self, size: int) -> int:
        return min(max(size, self.least), self.most)


Needed: TypeAlias = Sequence[tuple[float, int]]
"""What was needed when: times that grow, sizes that fall."""


def needed(busy: int, waiting: int, slots: int) -> int:
    """How many children of `slots` slots it takes for what they do and what waits, with one slot more, so that the next call
    finds one. 0 where there is nothing.

    It depends on the load alone, not on how many children there are, so what it says does not change what it says next.
    """
    load = busy + waiting
    return load // slots + 1 if load > 0 else 0


def by_backlog(before: Needed, now: float, need: int, bounds: ScaleBounds) -> tuple[int, Needed]:
    """How many children a pool is to have now, and what to remember of it: as many as were needed at most in the last
    `cooldown` seconds. So it grows at once, and shrinks when less was enough for so long.
    """
    kept = [(at, size) for at, size in before if at > now - bounds.cooldown and size > need]
    after = [*kept, (now, need)]
    return bounds.within(after[0][1]), after


def spread(total: int, members: Mapping[str, int | None]) -> dict[str, int]:
    """How many children each parent has of `total`: as many as every other, the first by their ids one more.

    `members`: by id, how many each may have at most; None: any number.
    """
    shares = dict.fromkeys(sorted(members), 0)
    while total > 0 and (room := [id for id in shares if (most := members[id]) is None or shares[id] < most]):
        for id in room[:total]:
            shares[id] += 1
        total -= len(room[:total])
    return shares
