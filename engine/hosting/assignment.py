"""Which engine should run which partition: sticky rendezvous hashing with bounded load, as one pure function.

Each engine computes it by itself, from the same heartbeats. Of each stage every engine gets as many partitions as any other,
or one more; who holds a partition keeps it while that allows it. So an engine that joins or leaves moves only what it gets,
or had.
"""

from __future__ import annotations

import hashlib
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
        # Stages of one partition are spread as if they were one stage: alone, each would stay where it began.
        group = groups.setdefault(("", "", able) if count == 1 else (topology, stage, able), [])
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
    found: dict[StagePartition, str] = {}
    for m in order:
        for part in sorted(held[m], key=lambda part: -_score(part, m))[: room[m]]:
            found[part] = m
            room[m] -= 1
    for part in parts:
        if part not in found:
            m = max((m for m in order if room[m] > 0), key=lambda m: _score(part, m))
            found[part] = m
            room[m] -= 1
    return found


def _score(part: StagePartition, member: str) -> int:
    """A number that is the same on every machine."""
    text = "\0".join([part.topology, part.stage, str(part.number), member])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
