"""Whatever the order in which events arrive within the lateness, the windows are the same, each once, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import StageLab
from hypothesis import given
from hypothesis import strategies as st

from dspex import Stream, Topology

LATENESS = 20
KINDS: dict[str, Callable[[Stream[Any, str]], Stream[Any, str]]] = {
    "tumbling": lambda s: s.window("10s", lateness=LATENESS).collect(name="w"),
    "sliding": lambda s: s.window("25s", every="10s", lateness=LATENESS).reduce(lambda a, b: {"n": a["n"] + b["n"]}, name="w"),
    "folded": lambda s: s.window("20s", every="5s", lateness=LATENESS).aggregate(int, lambda sum, d: sum + d["n"], name="w"),
    "sessions": lambda s: s.session_window("6s", lateness=LATENESS).collect(name="w"),
}
ARRIVALS = st.lists(st.tuples(st.integers(0, 120), st.integers(0, LATENESS), st.sampled_from("ab")), min_size=1, max_size=25)


def graph(kind: str) -> Topology:
    topology = Topology("t")
    KINDS[kind](topology.source("in").key_by("k")).sink("out")
    return topology.freeze()


GRAPHS = {kind: graph(kind) for kind in KINDS}


def windows(kind: str, events: list[tuple[int, int, str]], order: list[int]) -> list[Any]:
    """What comes of events that arrive in an order, each moving the watermark to the latest time so far."""
    one, latest = StageLab(GRAPHS[kind]), 0
    for n in order:
        time, _, key = events[n]
        latest = max(latest, time)
        one.event({"n": n}, time, key=key)
        one.mark(latest)
    one.mark()
    assert one.letters == []
    assert one.kept == (0, 0)
    ends = [(end, key) for key, _, end, _ in one.windows()]
    assert ends == sorted(ends)
    found = [(key, start, end, value) for key, start, end, value in one.windows()]
    assert len({w[:3] for w in found}) == len(found)
    for *_, value in found:
        if isinstance(value, list):  # events of one time are in the order in which they came
            value.sort(key=lambda d: d["n"])
    return sorted(found, key=lambda w: w[:3])


@pytest.mark.parametrize("kind", KINDS)
@given(arrivals=ARRIVALS)
def test_windows_are_the_same_in_any_order_within_the_lateness(kind: str, arrivals: list[tuple[int, int, str]]) -> None:
    numbers = range(len(arrivals))
    in_time = sorted(numbers, key=lambda n: arrivals[n][0])
    as_they_come = sorted(numbers, key=lambda n: arrivals[n][0] + arrivals[n][1])
    found = windows(kind, arrivals, as_they_come)
    assert found == windows(kind, arrivals, in_time)
    if kind == "tumbling":
        assert sum(len(value) for *_, value in found) == len(arrivals)
