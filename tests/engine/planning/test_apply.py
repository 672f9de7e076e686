"""Applying topologies: which stream has which subject, and what is refused because it would lose or double something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, SOURCES, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import LMUnavailable, StreamFull, SubjectTaken, TopologyError
from dspex.bus.port import StreamConfig
from dspex.engine.graph.manifest import Manifest, history
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.delete import delete
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def through(name: str, source: str, sink: str, **options: Any) -> Topology:
    topology = Topology(name)
    topology.source(source, **options).sink(sink)
    return topology


def refused(one: Lab, *topologies: Topology) -> Any:
    with pytest.raises((SubjectTaken, TopologyError)) as e:
        one.start("refused", *topologies)
    one.hosts.pop("refused")
    return e.value


async def applied_versions(one: Lab) -> dict[str, list[Manifest]]:
    return await history(await one.client.bus.bucket(subjects.applied(APP)))


def test_a_publisher_that_fills_the_stream_of_sources_does_not_stop_commits(lab: MakeLab) -> None:  # G5
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"text": "a"})
    sources = one.server.streams[SOURCES]
    one.run(one.client.bus.ensure_stream(StreamConfig(SOURCES, ["in"], max_bytes=sources.bytes + 1)))
    with pytest.raises(StreamFull):
        one.run(one.client.publish("in", {"text": "b"}))
    one.work()
    assert one.outputs("out") == [{"text": "a", "answer": "yes"}]


def test_a_source_that_another_topology_of_the_application_emits_to_stays_with_the_sinks(lab: MakeLab) -> None:
    one = lab()
    one.start("first", through("first", "raw", "clean"))
    one.start("second", through("second", "clean", "done"))
    one.publish("raw", {"n": 1})
    one.advance(1)
    assert one.outputs("done") == [{"n": 1}]
    assert one.run(one.client.bus.stream_of("clean")) == STREAM
    assert one.run(one.client.bus.stream_of("raw")) == SOURCES


def test_a_new_sink_on_a_subject_that_the_stream_of_sources_holds_is_refused_with_two_ways_out(lab: MakeLab) -> None:
    one = lab()
    one.start("second", through("second", "clean", "done"))
    error = refused(one, through("first", "raw", "clean"))
    assert error.code == "DX406"
    assert "another subject" in error.fix
    assert "another application name" in error.fix


@pytest.mark.parametrize("applied_before", [False, True])
def test_a_wildcard_source_that_takes_in_a_sink_and_more_is_refused_with_two_ways_out(
    lab: MakeLab, applied_before: bool
) -> None:
    one = lab()
    emitting, reading = through("emitting", "raw", "orders.done"), through("reading", "orders.*", "out")
    if applied_before:
        one.start("emitting", emitting)
    error = refused(one, reading) if applied_before else refused(one, emitting, reading)
    assert error.code == "DX406"
    assert "do not take in 'orders.done'" in error.fix
    assert "another subject" in error.fix


def test_a_subject_whose_stream_of_others_is_gone_is_not_captured_and_calls_go_on(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", timeout="10s", deadline="20s").sink("out")
    one = lab(topology)
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    one.start()
    for text in "ab":
        one.publish("in", {"text": text})
    one.advance(1)
    one.kill()
    one.run(one.client.bus.remove("stream", "EVENTS"))
    host = one.start()
    one.advance(6)
    assert one.run(one.client.bus.stream_of("in")) is None
    assert "EVENTS" in (host.runners[0].stopped or "")
    asked: list[str] = []

    def answer(inputs: Any, work: Any) -> Any:
        asked.append(inputs["text"])
        if inputs["text"] == "b":
            raise LMUnavailable("down")
        return {"answer": "yes"}

    one.answers["ask"] = answer
    one.work()
    one.advance(30)
    assert one.outputs("out") == [{"text": "a", "answer": "yes"}]  # the record is read
    assert [letter.event.data for letter in one.letters()] == [{"text": "b"}]  # and timers fire
    assert len(asked) > 2
    assert host.failure is None


def test_a_source_whose_stream_comes_back_is_compared_with_what_was_read(lab: MakeLab) -> None:
    one = lab(through("reading", "in", "out", on_gap="skip"))
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    host = one.start()
    one.publish("in", {"n": 1})
    one.run(one.client.bus.remove("stream", "EVENTS"))
    one.advance(12)
    assert "not there" in (host.runners[0].stopped or "")
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    one.publish("in", {"n": 2})
    one.advance(12)
    assert one.outputs("out") == [{"n": 1}, {"n": 2}]
    assert host.runners[0].stopped is None


def test_an_old_version_that_starts_again_is_refused_and_may_be_applied_on_purpose(lab: MakeLab) -> None:
    one = lab()
    old, new = through("changing", "in", "out"), through("changing", "in", "out")
    new.source("second").sink("seconds")
    one.start("old", old)
    one.drain("old")
    one.start("new", new)
    one.drain("new")
    error = refused(one, old)
    assert error.code == "DX238"
    assert "version 1" in error.message
    assert "dspex apply" in error.fix
    old = Topology("changing", drop=["second", "seconds"])
    old.source("in").sink("out")
    assert one.run(apply(one.client.bus, APP, [old.graph], again=True)).manifests["changing"].version == 3

    assert [m.version for m in one.run(applied_versions(one))["changing"]] == [1, 2, 3]


def test_an_engine_that_is_told_to_goes_back_to_an_old_version_as_a_run_does_that_begins_anew(lab: MakeLab) -> None:
    one = lab()
    old, new = through("changing", "in", "out"), Topology("changing")
    new.source("in").map(lambda d: d, name="same").sink("out")
    for name, version in (("a", old), ("b", new), ("c", old)):
        one.start(name, version, again=True)
        one.drain(name)
    assert [m.version for m in one.run(applied_versions(one))["changing"]] == [1, 2, 3]


def test_of_engines_with_two_versions_only_the_newer_runs_and_the_older_says_so_and_ends_if_it_is_left_alone(
    lab: MakeLab,
) -> None:
    one = lab()
    old, new = through("changing", "in", "out", partitions=4), Topology("changing")
    new.source("in", partitions=4).map(lambda d: {**d, "seen": 1}, name="more").sink("out")
    one.start("old", old)
    number = iter(range(100))

    def publish() -> None:
        for n in [next(number) for _ in range(20)]:
            one.publish("in", {"n": n}, key=str(n))

    publish()
    one.start("new", new)
    publish()
    one.advance(10)
    publish()
    owned = {name: len(host.runners[0].partitions) for name, (host, _) in one.hosts.items()}
    assert owned == {"old": 0, "new": 4}
    outputs = one.outputs("out")
    assert sorted(o["n"] for o in outputs) == list(range(60))
    assert all("seen" in o for o in outputs if o["n"] >= 40)
    health = {engine["engine"]: engine["health"] for engine in one.run(one.client.status())["engines"]}
    assert health == {"old": "others run a newer version of changing (version 2, this engine has 1)", "new": "ok"}
    one.kill("new")
    with pytest.raises(TopologyError, match="newer version of the topology") as e:
        one.advance(10)
    assert e.value.code == "DX233"
    one.hosts.clear()


@pytest.mark.parametrize("applied_before", [False, True])
@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
def test_of_two_versions_that_start_at_once_one_is_the_newest_and_the_other_stays_replaced_however_often_it_restarts(
    lab: MakeLab, applied_before: bool, order: tuple[str, str]
) -> None:
    one, versions = lab(), {"old": through("changing", "in", "out"), "new": Topology("changing")}
    versions["new"].source("in").map(lambda d: {**d, "seen": 1}, name="more").sink("out")
    if applied_before:
        one.start("old", versions["old"])
        one.kill("old")

    async def start() -> list[Any]:
        hosts = {name: Host(one.server.connect(), APP, [versions[name].graph], engine=name) for name in order}
        one.hosts |= {name: (host, one.server.connect()) for name, host in hosts.items()}
        return await asyncio.gather(*(host.start() for host in hosts.values()), return_exceptions=True)

    assert one.run(start()) == [None, None]
    one.advance(10)
    known: dict[str, list[Manifest]] = one.run(applied_versions(one))
    digests = {name: t.graph.digest for name, t in versions.items()}
    newest, other = sorted(digests, key=lambda name: digests[name] == known["changing"][-1].digest, reverse=True)
    assert sorted(m.digest for m in known["changing"]) == sorted(digests.values())
    assert newest == "new" or not applied_before
    owns = {name: len(host.runners[0].partitions) for name, (host, _) in one.hosts.items()}
    assert owns == {newest: 1, other: 0}
    one.kill(other)
    for _ in range(2):
        assert refused(one, versions[other]).code == "DX238"
    one.publish("in", {"n": 1})
    one.advance(1)
    assert one.outputs("out") == [{"n": 1, "seen": 1} if newest == "new" else {"n": 1}]


def test_an_engine_goes_on_with_its_version_when_a_newer_one_is_applied_and_nobody_runs_that_yet(lab: MakeLab) -> None:
    one = lab()
    host = one.start("old", through("changing", "in", "out"))
    new = Topology("changing")
    new.source("in").map(lambda d: {**d, "seen": 1}, name="more").sink("out")
    one.run(apply(one.client.bus, APP, [new.graph]))
    one.publish("in", {"n": 1})
    one.advance(60)
    assert (one.outputs("out"), host.membership.replaced) == ([{"n": 1}], "")


# -- public copies of sinks
def copying(sink: str = "out.{n}", name: str = "copying", stream: str = "PUBLIC") -> Topology:
    topology = Topology(name)
    topology.source(f"{name}.in").sink(sink, stream=stream)
    return topology


def test_a_public_copy_has_what_a_sink_had_before_and_gets_what_comes(lab: MakeLab) -> None:
    one = lab()
    one.start("a", through("copying", "copying.in", "out.{n}"))
    one.publish("copying.in", {"n": 1})
    one.drain("a")
    one.start("b", copying(), copying("other.{n}", "second"))
    one.publish("copying.in", {"n": 2})
    one.publish("second.in", {"n": 3})
    one.advance(1)
    assert sorted(m.subject for m in one.messages(">", "PUBLIC")) == ["other.3", "out.1", "out.2"]
    assert [m.headers for m in one.messages("out.2", "PUBLIC")] == [m.headers for m in one.messages("out.2", STREAM)]
    one.drain("b")
    one.run(one.client.bus.ensure_stream(StreamConfig("PUBLIC", (), max_bytes=1 << 20)))
    one.start("c", copying(), copying("other.{n}", "second"))
    assert one.run(one.client.bus.stream("PUBLIC")).max_bytes == 1 << 20  # what its user has set stays


def test_a_copy_into_a_stream_of_others_is_refused_unless_they_copy_it_themselves(lab: MakeLab) -> None:
    one = lab()
    one.run(one.client.bus.ensure_stream(StreamConfig("PUBLIC", ["theirs"])))
    error = refused(one, copying())
    assert (error.code, f"{STREAM} as a source of PUBLIC, filter out.*" in error.fix) == ("DX241", True)
    one.run(one.client.bus.ensure_stream(StreamConfig("PUBLIC", (), copies={STREAM: ["out.>"]})))
    one.start("taken", copying())
    one.publish("copying.in", {"n": 1})
    one.advance(1)
    assert len(one.messages("out.1", "PUBLIC")) == 1


def test_a_copy_that_would_have_events_twice_is_refused(lab: MakeLab) -> None:
    one = lab()
    one.start("narrow", copying("out.one"))
    one.drain("narrow")
    error = refused(one, copying("out.{n}"))
    assert (error.code, "copies 'out.one' already" in error.message) == ("DX241", True)
    assert refused(one, copying("{a}.b", "first", "NEW"), copying("a.{b}", "second", "NEW")).code == "DX241"


def test_a_copy_of_an_application_that_is_gone_is_not_filled_from_a_new_one(lab: MakeLab) -> None:
    one = lab()
    one.start("a", copying())
    one.publish("copying.in", {"n": 1})
    one.advance(1)
    one.drain("a")
    deleted = one.run(delete(one.client.bus, APP, "copying"))
    assert (deleted.whole, deleted.kept) == (True, ["PUBLIC"])
    assert len(one.messages(">", "PUBLIC")) == 1
    assert "nats stream rm PUBLIC" in refused(one, copying()).fix
    assert one.run(one.client.bus.remove("stream", "PUBLIC"))
    one.start("b", copying())
