"""What may change in a running topology, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.errors import TopologyError
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def version(node: str = "ask", source: str = "in", partitions: int = 1, order: str = "any", **options: Any) -> Topology:
    topology = Topology("changing", **options)
    stream = topology.source(source, partitions=partitions)
    stream.predict("text -> answer", name=node, order=order).sink("out")  # type: ignore[arg-type]
    return topology


def refused(one: Lab, topology: Topology) -> TopologyError:
    with pytest.raises(TopologyError) as e:
        one.start("new", topology)
    one.hosts.pop("new")
    return e.value


def test_a_topology_with_another_number_of_partitions_than_applied_is_refused(lab: MakeLab) -> None:
    one = lab(version(partitions=4))
    one.start()
    one.drain()
    error = refused(one, version(partitions=8))
    assert error.code == "DX234"
    assert "partitions=4" in error.fix


def test_a_removed_node_with_open_calls_is_refused_unless_it_is_dropped(lab: MakeLab) -> None:
    one = lab(version())
    one.start()
    run = one.publish("in", {"text": "a"})
    one.drain()
    error = refused(one, version("other"))
    assert error.code == "DX232"
    assert "'ask'" in error.message
    assert 'drop=["ask"]' in error.fix
    one.start("new", version("other", drop=["ask"]))
    one.work()
    one.publish("in", {"text": "b"})
    one.advance(1)
    assert [o["text"] for o in one.outputs("out")] == ["b"]
    (letter,) = one.letters()  # the answer to what was asked before is not thrown away
    assert (letter.node, letter.run, letter.code) == ("ask", run, "DX232")


@pytest.mark.parametrize("order", ["any", "key", "serial"])
def test_open_calls_of_a_renamed_node_go_on_under_its_new_name(lab: MakeLab, order: str) -> None:
    one = lab(version(order=order))
    one.start()
    for n in range(5):
        one.publish("in", {"text": str(n)}, key="k")
    one.drain()
    one.start("new", version("answer", order=order, renamed_from={"answer": "ask"}))
    one.publish("in", {"text": "5"}, key="k")
    one.work()
    one.advance(1)
    assert [o["text"] for o in one.outputs("out")] == [str(n) for n in range(6)]
    assert one.letters() == []


@pytest.mark.parametrize("order", ["any", "key", "serial"])
def test_open_calls_of_a_node_that_was_renamed_twice_go_on_under_its_newest_name(lab: MakeLab, order: str) -> None:
    one = lab(version(order=order))
    one.start()
    one.publish("in", {"text": "0"}, key="k")
    one.drain()
    one.start("second", version("answer", order=order, renamed_from={"answer": "ask"}))
    one.publish("in", {"text": "1"}, key="k")
    one.drain("second")
    one.start("third", version("reply", order=order, renamed_from={"reply": "answer"}))
    one.publish("in", {"text": "2"}, key="k")
    one.work()
    one.advance(1)
    assert one.letters() == []
    assert [o["text"] for o in one.outputs("out")] == ["0", "1", "2"]
    one.kill("third")
    one.start("again", version("reply", order=order, renamed_from={"reply": "answer"}))
    one.publish("in", {"text": "3"}, key="k")
    one.advance(10)
    assert [o["text"] for o in one.outputs("out")] == ["0", "1", "2", "3"]


def test_a_removed_source_is_refused_unless_it_is_declared(lab: MakeLab) -> None:
    one = lab(version())
    one.start()
    one.drain()
    assert refused(one, version(source="input")).code == "DX232"
    one.start("new", version(source="input", drop=["in"]))
    one.work()
    one.publish("input", {"text": "a"})
    one.advance(1)
    assert len(one.outputs("out")) == 1


def test_an_older_engine_refuses_what_a_newer_one_has_claimed(lab: MakeLab) -> None:
    one = lab(version())
    old = one.start("old")
    newer = version()
    newer.source("second").sink("seconds")
    new = one.start("new", newer)
    new.runners[0].own(0)
    one.advance(1)
    old.runners[0].own(0)
    with pytest.raises(TopologyError) as e:
        one.advance(1)
    assert e.value.code == "DX233"


def test_applying_the_same_topology_again_changes_nothing(lab: MakeLab) -> None:
    one = lab(version())
    host = one.start()
    assert {host.stream_applied, *host.applied.values()} == {"created"}
    one.drain()
    host = one.start()
    assert {host.stream_applied, *host.applied.values()} == {"unchanged"}
    assert one.run(one.client.manifests())["changing"].version == 1


def test_two_topologies_of_one_application_may_be_applied_by_different_engines(lab: MakeLab) -> None:
    first, second = Topology("first"), Topology("second")
    first.source("a").sink("b")
    second.source("b").sink("c")
    one = lab()
    one.start("one", first)
    one.start("two", second)
    one.publish("a", {"n": 1})
    one.advance(1)
    assert one.outputs("c") == [{"n": 1}]
