"""Which engine runs which partition: even loads, and little that moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from dspex.engine.hosting.assignment import Member, StagePartition, assign

Stages = Mapping[tuple[str, str], int]
STAGES = st.dictionaries(st.tuples(st.just("t"), st.text("abcdef", min_size=1, max_size=2)), st.sampled_from([1, 2, 3, 7, 64]))
STEPS = st.lists(st.integers(0, 6), min_size=1, max_size=8)  # each: this engine joins, or leaves if it is there


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
        before = len(names)
        names = names ^ {f"e{step}"} or {"e0"}
        after = assign(stages, members(found, names))
        moved = by_stage({p for p in after if after[p] != found[p]})
        fewer = min(before, len(names)) if before != len(names) else 1  # the last one left, and another came
        assert all(moved[stage] <= ceil(count / fewer) for stage, count in stages.items())
        found = after


@given(STAGES, STEPS)
def test_every_partition_has_an_engine_and_the_loads_of_a_stage_differ_by_one_at_most(stages: Stages, steps: list[int]) -> None:
    names = {"e0"}
    found: dict[StagePartition, str] = {}
    for step in steps:
        names = names ^ {f"e{step}"} or {"e0"}
        found = assign(stages, members(found, names))
        assert len(found) == sum(stages.values())
        for (topology, stage), count in stages.items():
            loads = Counter(owner for p, owner in found.items() if (p.topology, p.stage) == (topology, stage))
            if count > 1:
                assert max(loads[m] for m in names) - min(loads[m] for m in names) <= 1
        alone = Counter(owner for p, owner in found.items() if stages[p.topology, p.stage] == 1)
        assert max(alone[m] for m in names) - min(alone[m] for m in names) <= 1


@given(STAGES, st.sets(st.integers(0, 9), min_size=1))
def test_what_is_assigned_stays_while_the_engines_stay(stages: Stages, engines: set[int]) -> None:
    names = {f"e{n}" for n in engines}
    found = assign(stages, members({}, names))
    assert assign(stages, members(found, names)) == found


def test_stages_of_one_partition_do_not_stay_on_the_engine_that_came_first() -> None:
    stages = {("t", f"s{n}"): 1 for n in range(10)}
    first = assign(stages, members({}, {"a"}))
    assert set(first.values()) == {"a"}
    assert Counter(assign(stages, members(first, {"a", "b"})).values()) == {"a": 5, "b": 5}


def test_a_partition_that_two_engines_list_goes_to_one_of_them() -> None:
    part = StagePartition("t", "s1", 0)
    both = {m: Member(frozenset({"t"}), frozenset({part})) for m in ("a", "b")} | {"c": Member(frozenset({"t"}), frozenset())}
    assert assign({("t", "s1"): 1}, both)[part] in ("a", "b")


def test_an_engine_gets_nothing_of_a_topology_that_it_does_not_run() -> None:
    stages = {("t", "s1"): 4, ("u", "s1"): 4}
    found = assign(stages, {"a": Member(frozenset({"t"}), frozenset()), "b": Member(frozenset({"t", "u"}), frozenset())})
    assert Counter((p.topology, owner) for p, owner in found.items()) == {("t", "a"): 2, ("t", "b"): 2, ("u", "b"): 4}
