"""Which engine should run which partition: sticky rendezvous hashing with bounded load, as one pure function.

Each engine computes it by itself, from the same heartbeats. Of each stage every engine gets as many partitions as any other,
or one more; who holds a partition keeps it while that allows it. So an engine that joins or leaves moves only what it gets,
or had. Stages that have fewer partitions than there are engines count together: every engine gets as many of all of them as any
other, or one more.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class StagePartition(NamedTuple):
    """One partition of a stage."""

    topology: str
    stage: str
    number: int


class Member(NamedTuple):
    """An engine that lives: the topologies that it runs, and the partitions that it lists as its own."""

    topologies: frozenset[str]
    owns: frozenset[StagePartition]


def assign(stages: Mapping[tuple[str, str], int], members: Mapping[str, Member]) -> dict[StagePartition, str]:
    """The engine for each partition of the stages (topology and id → count); none where no member runs the topology."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[StagePartition]] = {}
    for (topology, stage), count in sorted(stages.items()):
        able = tuple(sorted(m for m, said in members.items() if topology in said.topologies))
        # Stages with fewer partitions than engines are spread as if they were one: alone, each would stay where it began.
        group = groups.setdefault(("", "", able) if count < len(able) else (topology, stage, able), [])
        group += [StagePartition(topology, stage, i) for i in range(count)]
    found: dict[StagePartition, str] = {}
    for (_, _, able), parts in groups.items():
        found |= _spread(parts, {m: members[m].owns for m in able})
    return found


def _spread(parts: Sequence[StagePartition], owns: Mapping[str, Collection[StagePartition]]) -> dict[StagePartition, str]:
    """The member of each part, with loads that differ by one at most."""
    if not owns:
        return {}
    held: dict[str, list[StagePartition]] = {m: [] for m in owns}
    for part in parts:
        holders = [m for m in owns if part in owns[m]]
        if holders:  # several list it when one of them does not know yet that it was taken over
            held[max(holders, key=lambda m: _score(part, m))].append(part)
    least, more = divmod(len(parts), len(owns))
    order = sorted(owns, key=lambda m: (-len(held[m]), _score(parts[0], m)))
    room = {m: least + (n < more) for n, m in enumerate(order)}  # those who hold most may have one more
    found = _kept(held, room)
    several = parts[0][:2] != parts[-1][:2]  # stages: of each, an engine is to have one partition if that is possible
    crowd = Counter((part[:2], m) for part, m in found.items() if several)
    for part in [part for part in parts if part not in found]:
        free = (m for m in order if room[m] > 0)
        found[part] = m = max(free, key=lambda m: (-crowd[part[:2], m], _score(part, m)))
        room[m] -= 1
        crowd[part[:2], m] += several
    return found


def _kept(held: Mapping[str, list[StagePartition]], room: dict[str, int]) -> dict[StagePartition, str]:
    """What stays where it is, as far as there is room; of each stage as few as possible have to go."""
    found: dict[StagePartition, str] = {}
    gone = Counter[tuple[str, str]]()
    for m, mine in held.items():
        scores = {part: _score(part, m) for part in mine} if len(mine) > room[m] else {}
        while len(mine) > room[m]:
            crowd = Counter(part[:2] for part in mine)
            away = max(mine, key=lambda part: (crowd[part[:2]], -gone[part[:2]], -scores[part]))
            mine.remove(away)
            gone[away[:2]] += 1
        room[m] -= len(mine)
        found |= dict.fromkeys(mine, m)
    return found


def _score(part: StagePartition, member: str) -> int:
    """A number that is the same on every machine."""
    text = "\0".join([part.topology, part.stage, str(part.number), member])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
