"""Which engine runs which partition: even loads, and little that moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex.engine.hosting.assignment import Member, StagePartition, assign

Stages = Mapping[tuple[str, str], int]
COUNTS = st.sampled_from([1, 2, 3, 5, 7, 16, 64])
STAGES = st.dictionaries(st.tuples(st.just("t"), st.text("abcdef", min_size=1, max_size=2)), COUNTS, min_size=1)
STEPS = st.lists(st.integers(0, 7), min_size=1, max_size=9)  # each: this engine joins, or leaves if it is there


def members(found: Mapping[StagePartition, str], names: set[str]) -> dict[str, Member]:
    """Engines that own what was assigned to them."""
    return {m: Member(frozenset({"t"}), frozenset(p for p, owner in found.items() if owner == m)) for m in names}


def by_stage(parts: set[StagePartition]) -> Counter[tuple[str, str]]:
    return Counter((p.topology, p.stage) for p in parts)


@given(STAGES, STEPS)
def test_one_engine_that_joins_or_leaves_moves_at_most_its_share_of_each_stage(stages: Stages, steps: list[int]) -> None:
    names = {"e0"}
    found = assign(stages, members({}, names))
    for step in steps:
        before, names = names, names ^ {f"e{step}"} or {"e8"}
        found, was = assign(stages, members(found, names)), found
        most = max(len(before), len(names)) if before & names else 1  # the last one left, and another came
        moved = by_stage({p for p in found if found[p] != was[p]})
        assert all(moved[stage] <= ceil(64 / most) for stage in stages)
        assert all(moved[stage] <= ceil(count / most) for stage, count in stages.items() if count >= most)


@given(STAGES, STEPS)
def test_every_partition_has_an_engine_and_the_loads_of_a_stage_differ_by_one_at_most(stages: Stages, steps: list[int]) -> None:
    names = {"e0"}
    found: dict[StagePartition, str] = {}
    for step in steps:
        names = names ^ {f"e{step}"} or {"e8"}
        found = assign(stages, members(found, names))
        assert len(found) == sum(stages.values())
        for stage in [stage for stage, count in stages.items() if count >= len(names)]:
            assert differ_by_one(names, [p for p in found if p[:2] == stage], found)
        assert differ_by_one(names, [p for p in found if stages[p[:2]] < len(names)], found)


def differ_by_one(names: set[str], parts: list[StagePartition], found: Mapping[StagePartition, str]) -> bool:
    loads = Counter(found[part] for part in parts)
    return max(loads[m] for m in names) - min(loads[m] for m in names) <= 1


@given(STAGES, st.sets(st.integers(0, 9), min_size=1))
def test_what_is_assigned_stays_while_the_engines_stay(stages: Stages, engines: set[int]) -> None:
    names = {f"e{n}" for n in engines}
    found = assign(stages, members({}, names))
    assert assign(stages, members(found, names)) == found


@pytest.mark.parametrize("count", [1, 2])
def test_stages_of_few_partitions_do_not_stay_on_the_engines_that_came_first(count: int) -> None:
    stages = {("t", f"s{n}"): count for n in range(12)}
    found: dict[StagePartition, str] = {}
    for names in ("a", "ab", "abc", "abcd"):
        found = assign(stages, members(found, set(names)))
        assert Counter(found.values()) == dict.fromkeys(names, 12 * count // len(names))
        for number in range(12):
            mine = [owner for part, owner in found.items() if part.stage == f"s{number}"]
            assert len(set(mine)) == min(count, len(names))


def test_a_partition_that_two_engines_list_goes_to_one_of_them() -> None:
    part = StagePartition("t", "s1", 0)
    both = {m: Member(frozenset({"t"}), frozenset({part})) for m in ("a", "b")} | {"c": Member(frozenset({"t"}), frozenset())}
    assert assign({("t", "s1"): 1}, both)[part] in ("a", "b")


def test_an_engine_gets_nothing_of_a_topology_that_it_does_not_run() -> None:
    stages = {("t", "s1"): 4, ("u", "s1"): 4}
    found = assign(stages, {"a": Member(frozenset({"t"}), frozenset()), "b": Member(frozenset({"t", "u"}), frozenset())})
    assert Counter((p.topology, owner) for p, owner in found.items()) == {("t", "a"): 2, ("t", "b"): 2, ("u", "b"): 4}
