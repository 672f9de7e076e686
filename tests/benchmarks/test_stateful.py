"""`scripts/bench stateful`: what it times gives what it must. How fast anything is, is no matter here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts of that folder import each other by name

import orjson
from jobs import by_hand, nexmark
from jobs.peers import event
from jobs.topologies import topology

from dspex.testing import Driver


@pytest.mark.long
@pytest.mark.parametrize("query", nexmark.QUERIES)
def test_a_query_of_nexmark_has_as_many_results_as_plain_python_counts(query: str) -> None:
    with Driver(topology("bench", query, 0, "in", "", "out", 1)) as d:
        for i in [*range(250), *([nexmark.LATER] if nexmark.QUERIES[query].ends else [])]:
            d.publish("in", orjson.loads(nexmark.event(i)))
        d.advance("2s")
        assert len(d.outputs("out")) == nexmark.results(query, 250) > 0


def test_what_is_written_by_hand_counts_as_the_engine_does() -> None:
    events = [event(i) for i in (0, 1000, 2000, 1, 1001, 190_000)]  # three of one key, two of another, and the end
    numbers, changed = by_hand.Count()(events[:-1])
    assert [orjson.loads(n)["count"] for n in numbers] == [1, 2, 3, 1, 2]
    assert changed
    windows, _ = by_hand.Window()(events)
    assert [orjson.loads(w)["value"] for w in windows] == [3, 2]
    with Driver(topology("bench", "window", 0, "in", "", "out", 1)) as d:
        for data in events:
            d.publish("in", orjson.loads(data))
        d.advance("2s")
        assert sorted(w["value"] for w in d.outputs("out")) == [2, 3]
