"""What a version with other options makes of the state that it finds."""

from __future__ import annotations

from typing import Any

import pytest
from engine_lab import StageLab

from dspex import Topology
from dspex.operators.stream import KeyedStream

NEXT_NUMBERS = 1000  # of a version that goes on


def going_on(before: StageLab, topology: Topology) -> StageLab:
    """The same partition with another version of the topology."""
    after = StageLab(topology)
    after.tables, after._taken = before.tables, NEXT_NUMBERS
    return after


def keyed() -> tuple[Topology, KeyedStream[Any]]:
    topology = Topology("t")
    return topology, topology.source("in").key_by("k", name="by")


@pytest.mark.parametrize("kind", ["fixed", "sliding", "each", "session"])
def test_a_window_that_is_open_when_lateness_grows_waits_for_late_events_and_gives_one_result(kind: str) -> None:
    def version(lateness: str) -> Topology:
        topology, stream = keyed()
        if kind == "session":
            stream.session_window("10s", lateness=lateness).count(name="w").sink("out")
        elif kind == "each":
            stream.window("10s", every="5s", lateness=lateness).aggregate(int, lambda s, d: s + 1, name="w").sink("out")
        else:
            every = "5s" if kind == "sliding" else None
            stream.window("10s", every=every, lateness=lateness).count(name="w").sink("out")
        return topology

    one = StageLab(version("0s"))
    one.event({}, 6)
    two = going_on(one, version("20s"))
    two.mark(19)
    two.event({}, 7)
    two.mark()
    starts = [start for _, start, _, _ in two.windows()]
    assert len(starts) == len(set(starts)) > 0
    assert all(value == 2 for *_, value in two.windows())
    assert two.kept == (0, 0)


def test_a_key_is_not_woken_by_the_end_of_a_ttl_that_the_version_before_had() -> None:
    def version(**ttl: Any) -> Topology:
        topology, stream = keyed()
        stream.stateful(lambda s, d, ctx: (s + 1, []), init=int, on_wake=lambda s, ctx: (s, ["woken"]), name="n", **ttl).sink(
            "out"
        )
        stream.window("1s").count(name="w").sink("windows")  # so that there is a watermark
        return topology

    one = StageLab(version(ttl="1m"))
    one.event({}, 1)
    two = going_on(one, version())
    two.mark()
    assert two.outputs("out") == []
    assert len(two.windows("windows")) == 1
    assert two.kept == (1, 0)  # its value stays, without a timer
