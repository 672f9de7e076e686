"""Streams that meet: keyed ones in one stage, calls side by side, and versions in which they meet for the first time."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.message import partition_of
from dspex.bus.port import NewMessage
from dspex.bus.records import NodeEvent, Origin, pack_frame
from dspex.engine.graph.hops import groups
from dspex.engine.testing.driver import Driver
from dspex.operators.stream import AnyStream
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
HOPS = ("a_key", "b_key")


def made(*, meet: bool, ask: bool = False, only: str = "ab", **options: Any) -> Topology:
    """Two keyed streams that meet, or do not."""
    topology = Topology("keyed", **options)
    streams = [topology.source(s).key_by("k", name=f"{s}_key") for s in only]
    if meet:
        streams = [streams[0].merge(*streams[1:])]
    for n, stream in enumerate(streams):
        (stream.predict("n: int -> answer", name=f"ask{n}") if ask else stream).sink(f"out.{n}")
    return topology


def stages(one: Lab) -> dict[str, str]:
    """Hop → the stage that it leads to, as it is applied."""
    return {name: id for name, (id, _) in one.run(one.client.manifests())["keyed"].hops.items() if name in HOPS}


def numbers(one: Lab) -> list[int]:
    return sorted(d["n"] for n in (0, 1) for d in one.outputs(f"out.{n}"))


def test_keyed_streams_that_merge_share_a_stage_and_keep_their_keys_and_the_order_of_each() -> None:
    topology = Topology("keyed")
    a, b = (topology.source(s).key_by("k", name=f"{s}_key") for s in "ab")
    a.merge(b).predict("n: int -> twice: int", name="ask", order="key").sink("out")
    assert [[h.name for h in hops] for hops in groups(topology.graph)] == [["a_key", "b_key"]]
    with Driver(topology) as d:
        d.answer("ask", lambda inputs: {"twice": 2 * inputs["n"]})
        for n in range(20):
            d.publish("ab"[n % 2], {"k": f"k{n % 3}", "n": n})
        for key in ("k0", "k1", "k2"):
            of_key = [e.data["n"] for e in d.events("out") if e.key == key]
            assert [[n for n in of_key if n % 2 == source] for source in (0, 1)] == [
                [n for n in range(20) if n % 3 == int(key[1]) and n % 2 == source] for source in (0, 1)
            ]


def test_a_keyed_stream_and_one_without_a_key_merge_and_each_event_keeps_its_own() -> None:
    topology = Topology("mixed")
    plain = topology.source("in")
    plain.key_by("k").merge(plain).predict("n: int -> answer", name="ask").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"})
        d.publish("in", {"k": "a", "n": 1})
        assert sorted(str(e.key) for e in d.events("out")) == ["None", "a"]
        assert len({e.id for e in d.events("out")}) == len(d.calls("ask")) == 2


def test_calls_that_run_side_by_side_meet_again_once_whatever_dies() -> None:
    topology = Topology("parallel")
    s = topology.source("in").key_by("k")
    sides = [s.predict("n: int -> answer", name=name) for name in ("left", "right")]
    sides[0].merge(sides[1]).key_by("answer", name="by_answer").sink("out")
    with Driver(topology) as d:
        for name in ("left", "right"):
            d.answer(name, {"answer": name}, after="2s")
        d.publish("in", {"k": "a", "n": 1})
        d.crash("engine")
        d.advance("1s")
        d.crash("all")
        d.advance("1m")
        assert sorted((str(e.key), e.data["answer"]) for e in d.events("out")) == [("left", "left"), ("right", "right")]
        assert len({e.id for e in d.events("out")}) == 2


@pytest.mark.parametrize("meet", [True, False])
def test_streams_meet_or_part_in_a_new_version_where_nothing_is_held_and_what_was_on_its_way_arrives(
    lab: MakeLab, *, meet: bool
) -> None:
    one = lab(made(meet=not meet))
    one.start()
    for n in range(6):
        one.publish("ab"[n % 2], {"k": f"k{n % 3}", "n": n})
    before = stages(one)
    one.kill()
    for n, hop in enumerate(HOPS, 6):  # a commit of the old version that nobody has read
        event = NodeEvent(hop, Origin(f"id{n}", "a", f"run{n}", key="k1"), "application/json", b'{"k": "k1", "n": %d}' % n)
        to = subjects.edge(APP, "keyed", before[hop], partition_of("k1", 64))
        one.store(NewMessage(to, pack_frame([event])))
    host = one.start("b", made(meet=meet))
    for n in range(8, 12):
        one.publish("ab"[n % 2], {"k": f"k{n % 3}", "n": n})
    one.advance(20)
    after = stages(one)
    assert numbers(one) == list(range(12))
    assert one.letters() == []
    assert len(set(after.values())) == (1 if meet else 2)
    assert not set(after.values()) & set(before.values()), "ids of stages are never used again"
    assert {r.stage.id for r in host.runners} == {"s1", "s2", *after.values()}, "the old ones have ended"


@pytest.mark.parametrize("meet", [True, False])
def test_streams_may_not_meet_or_part_while_their_stage_holds_something(lab: MakeLab, *, meet: bool) -> None:  # I8
    one = lab(made(meet=not meet, ask=True, drop=["ask1"] if not meet else []))
    one.start()
    one.publish("a", {"k": "x", "n": 1})
    one.kill()
    with pytest.raises(TopologyError, match="joined or divided") as caught:
        one.start("b", made(meet=meet, ask=True, drop=["ask1"] if meet else []))
    assert caught.value.code == "DX234"
    one.start("c", made(meet=not meet, ask=True, drop=["ask1"] if not meet else []))
    one.work()
    one.advance(10)
    assert numbers(one) == [1]
    one.kill("c")
    one.start("d", made(meet=meet, ask=True, drop=["ask1"] if meet else []))
    one.publish("b", {"k": "x", "n": 2})
    one.advance(10)
    assert numbers(one) == [1, 2]


def test_a_stream_that_comes_back_divides_nothing_and_a_renamed_one_keeps_its_stage(lab: MakeLab) -> None:
    one = lab(made(meet=True))
    one.start()
    first = stages(one)["a_key"]
    for name, topology in (
        ("b", made(meet=False, only="a", drop=["b", "b_key"])),
        ("c", made(meet=False)),
    ):
        one.kill(next(iter(one.hosts)))
        one.start(name, topology)
    assert stages(one)["a_key"] == first
    assert stages(one)["b_key"] != first
    one.publish("b", {"k": "x", "n": 1})
    one.kill("c")
    renamed = Topology("keyed", renamed_from={"other_key": "b_key"})
    renamed.source("a").key_by("k", name="a_key").sink("out.0")
    renamed.source("b").key_by("k", name="other_key").sink("out.1")
    one.start("d", renamed)
    one.publish("b", {"k": "x", "n": 2})
    one.advance(10)
    assert numbers(one) == [1, 2]


def round_about(hops: int) -> tuple[Topology, AnyStream, AnyStream]:
    """A keyed stream, and what comes of it over more hops, the last of which is called "back"."""
    topology = Topology("t")
    a = topology.source("in").key_by("k", name="first")
    names = [*(f"between{n}" for n in range(hops - 1)), "back"]
    return topology, a, reduce(lambda stream, name: stream.key_by("k", name=name), names, a)


@pytest.mark.parametrize("hops", [1, 2])
def test_a_way_back_into_a_stage_before_what_goes_by_event_time_is_refused_and_the_fix_helps(hops: int) -> None:
    topology, a, b = round_about(hops)
    a.merge(b).window("5s").count(name="w").sink("out")
    (problem,) = topology.check()
    assert (problem.code, problem.node) == ("DX246", "back")
    topology, a, b = round_about(hops)
    a.key_by("event.key", name="again").merge(b).window("5s").count(name="w").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "x"})
        d.advance("2m")
        assert [w["value"] for w in d.outputs("out")] == [2]


def test_a_way_back_into_a_stage_holds_up_nothing_that_is_not_behind_it(lab: MakeLab) -> None:
    topology = Topology("t")
    once = topology.source("in").dedupe("id", within="10s", name="once")
    large, small = once.branch("n > 1")
    large.throttle("1/s", name="slow").merge(small).sink("out")
    one = lab(topology)
    one.start()
    for n in range(4):
        one.publish("in", {"id": f"i{n % 3}", "n": n})
    one.advance(120)
    assert sorted(d["n"] for d in one.outputs("out")) == [0, 1, 2]
    assert one.left() == []  # the watermark passed what dedupe knew
    assert one.differences() == []
