"""dedupe: of a business key one event goes on, in event time, wherever its repeats come in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import TopologyError
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def deduping(*, keyed: bool = False, key: str = "id", partitions: int = 1, name: str = "once", **options: Any) -> Topology:
    topology = Topology("t", **options)
    s = topology.source("in", partitions=partitions, time="at")
    (s.key_by("k").dedupe(key, within="5s", name=name) if keyed else s.dedupe(key, within="5s", name=name)).sink("out")
    return topology


def at(seconds: float) -> str:
    return datetime.fromtimestamp(1_767_225_600 + seconds, tz=UTC).isoformat()


def test_repeats_are_dropped_wherever_they_come_in_and_nothing_is_left(lab: MakeLab) -> None:
    one = lab(deduping(partitions=4))
    one.start()
    for n in range(12):
        one.publish("in", {"id": f"i{n % 3}", "n": n, "at": at(0)}, key=f"k{n}")
    one.kill()
    one.start("b")
    one.publish("in", {"id": "i1", "n": 99, "at": at(1)})
    one.advance(10)
    assert sorted(d["id"] for d in one.outputs("out")) == ["i0", "i1", "i2"]
    for n in range(8):  # later events, in all partitions
        one.publish("in", {"id": "next", "n": n, "at": at(20)}, key=f"k{n}")
    one.advance(1)
    assert {row[0][2] for row in one.left() if isinstance(row[0], tuple)} == {"next"}
    one.advance(40)  # of silence
    assert one.left() == []
    assert one.differences() == []


def test_a_stream_without_keys_has_the_keys_of_its_publishers_behind_it() -> None:
    with Driver(deduping()) as d:
        d.publish("in", {"id": "a", "at": at(0)}, key="publisher")
        assert [e.key for e in d.events("out")] == ["publisher"]


def test_a_keyed_stream_is_looked_at_within_its_key_alone() -> None:
    with Driver(deduping(keyed=True)) as d:
        for k in ("x", "y", "x"):
            d.publish("in", {"id": "a", "k": k, "at": at(0)})
        assert [o["k"] for o in d.outputs("out")] == ["x", "y"]


def test_what_counts_is_event_time_and_not_how_long_the_engine_was_down(lab: MakeLab) -> None:  # E19
    one = lab(deduping())
    one.start()
    one.publish("in", {"id": "a", "n": 1, "at": at(0)})
    one.advance(1)
    one.kill()
    one.publish("in", {"id": "a", "n": 2, "at": at(4)})
    one.publish("in", {"id": "a", "n": 3, "at": at(6)})
    one.advance(3600)
    one.start("b")
    one.advance(30)
    assert [d["n"] for d in one.outputs("out")] == [1, 3]


@pytest.mark.parametrize("id", [5, "", None])
def test_an_event_without_a_business_key_that_is_a_text_is_a_letter(id: Any) -> None:
    with Driver(deduping()) as d:
        d.publish("in", {"id": id, "at": at(0)})
        (letter,) = d.dead_letters()
        assert (letter.node, letter.code) == ("once/hop", "DX502")


def test_it_may_get_another_name_or_be_dropped_and_its_hop_goes_with_it(lab: MakeLab) -> None:
    def without(**options: Any) -> Topology:
        topology = Topology("t", **options)
        topology.source("in", time="at").sink("out")
        return topology

    one = lab(deduping())
    one.start()
    one.publish("in", {"id": "a", "at": at(0)})
    one.advance(1)
    one.kill()
    one.start("b", deduping(name="single", renamed_from={"single": "once"}))
    one.publish("in", {"id": "a", "at": at(1)})
    one.advance(10)
    assert len(one.outputs("out")) == 1
    one.drain("b")
    with pytest.raises(TopologyError, match="node 'single' of the applied version is gone"):
        one.start("c", without())
    one.start("d", without(drop=["single"]))
    one.publish("in", {"id": "a", "at": at(1)})
    one.advance(10)
    assert len(one.outputs("out")) == 2


def test_yaml_has_the_operator_and_not_its_hop(tmp_path: Any) -> None:
    text = deduping().to_yaml()
    assert "hop" not in text
    (tmp_path / "t.yaml").write_text(text)
    assert Topology.load(str(tmp_path / "t.yaml")).digest == deduping().digest


def test_repeats_of_an_earlier_event_are_dropped_behind_a_later_one_that_is_no_repeat_of_it() -> None:
    with Driver(deduping()) as d:
        for n, seconds in enumerate((100, 70, 72, 101, 60, 64)):
            d.publish("in", {"id": "a", "n": n, "at": at(seconds)})
        assert [o["n"] for o in d.outputs("out")] == [0, 1, 4]
