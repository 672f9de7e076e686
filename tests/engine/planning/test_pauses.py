"""A paused topology admits nothing, lets what is open end, and goes on without loss, whatever is started again meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex.bus import subjects
from dspex.engine.cli.figures import blocks
from dspex.engine.client.status.health import faults
from dspex.engine.graph import pauses
from dspex.engine.hosting.delete import delete
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(partitions: int = 1) -> Topology:
    topology = Topology("asking")
    topology.source("in", partitions=partitions).predict("text -> answer", name="ask").sink("out")
    return topology


def keyed() -> Topology:
    topology = Topology("asking")
    topology.source("in").key_by("text", name="by").predict("text -> answer", name="ask").sink("out")
    return topology


def pause(one: Lab, name: str = "", seconds: float = 0.0) -> None:
    async def go() -> None:
        info = await one.client.bus.stream(subjects.stream(APP))
        bucket = await one.client.bus.bucket(subjects.applied(APP))
        await pauses.pause(bucket, "asking", name, info.now + seconds if seconds and info else 0.0)

    one.run(go())
    one.advance(1.1)  # a heartbeat


def resume(one: Lab, name: str = "") -> None:
    async def go() -> None:
        await pauses.resume(await one.client.bus.bucket(subjects.applied(APP)), "asking", name)

    one.run(go())
    one.advance(1.1)


def texts(one: Lab) -> list[str]:
    return [o["text"] for o in one.outputs("out")]


def publish(one: Lab, *names: str) -> None:
    for text in names:
        one.publish("in", {"text": text}, key=text)


@pytest.mark.parametrize("topology", [asking(), asking(4), keyed()], ids=["a source", "four partitions", "behind a hop"])
def test_what_is_open_comes_to_its_end_and_nothing_else_is_admitted_until_it_is_resumed(lab: MakeLab, topology: Any) -> None:
    one = lab(topology)
    one.start("a")
    one.start("b")
    publish(one, "a", "b")
    one.advance(1)
    pause(one)
    publish(one, "c", "d")
    one.work()
    one.advance(60)
    assert sorted(texts(one)) == ["a", "b"]
    assert sum(s["lag"] for s in one.run(one.client.status())["stages"]) == 2
    resume(one)
    one.advance(5)
    assert sorted(texts(one)) == ["a", "b", "c", "d"]


def test_a_paused_key_by_stops_what_is_behind_it_and_no_other(lab: MakeLab) -> None:
    topology = Topology("asking")
    source = topology.source("in")
    for name in ("text", "other"):
        source.key_by("text", name=f"by_{name}").sink(f"out.{name}")
    one = lab(topology)
    one.start()
    pause(one, "by_text")
    publish(one, "a")
    one.advance(5)
    assert (one.outputs("out.text"), one.outputs("out.other")) == ([], [{"text": "a"}])
    assert {s["source"]: s["paused"] for s in one.run(one.client.status())["stages"]} == {
        "in": False,
        "by_text": True,
        "by_other": False,
    }
    resume(one, "by_text")
    one.advance(5)
    assert one.outputs("out.text") == [{"text": "a"}]


def test_a_full_partition_admits_nothing_more_when_a_place_becomes_free_after_the_pause(lab: MakeLab) -> None:
    """The reader has the next events in its hands already."""
    one = lab(asking())
    one.start(most_open_calls=2)
    publish(one, *"abcdefgh")
    one.advance(1)
    pause(one)
    one.work()
    one.advance(60)
    assert texts(one) == ["a", "b"]
    resume(one)
    one.advance(5)
    assert texts(one) == [*"abcdefgh"]


@pytest.mark.parametrize("stop", [Lab.kill, Lab.drain])
def test_a_pause_outlives_all_engines_and_ends_by_itself_where_it_was_given_an_end(
    lab: MakeLab, stop: Callable[[Lab], None]
) -> None:
    one = lab(asking())
    one.start()
    pause(one, seconds=60)
    stop(one)
    publish(one, "a")
    one.start()
    one.work()
    one.advance(30)
    (stage,) = one.run(one.client.status())["stages"]
    assert (texts(one), stage["paused"], stage["lag"], stage["paused_until"][:10]) == ([], True, 1, "2026-01-01")
    one.advance(35)
    (stage,) = one.run(one.client.status())["stages"]
    assert (texts(one), stage["paused"], stage["paused_until"]) == (["a"], False, None)


def test_one_stage_alone_is_paused_by_what_it_begins_at(lab: MakeLab) -> None:  # P17
    one = lab(keyed())
    one.start()
    one.work()
    pause(one, "by")
    publish(one, "a")
    one.advance(5)
    rows = {s["source"]: (s["paused"], s["lag"]) for s in one.run(one.client.status())["stages"]}
    assert (texts(one), rows) == ([], {"in": (False, 0), "by": (True, 1)})
    shown = {row["source"]: row["owner"] for row in blocks(one.run(one.client.status()))[0].rows}
    assert shown == {"in": "a", "by": "PAUSED; a"}
    resume(one, "by")
    assert texts(one) == ["a"]


def test_a_paused_topology_with_work_is_no_fault(lab: MakeLab) -> None:
    one = lab(keyed())
    host = one.start(stall_after=5.0)
    one.work()
    pause(one)
    publish(one, "a")
    one.advance(60)
    assert host.watchdog.health == "ok"
    found = faults(one.run(one.client.status(["lightweight"])))
    assert [f for f in found if f.check in ("engine", "stage", "owner")] == []


@pytest.mark.parametrize(
    "garbage", [b'{"stream":"S","seq":1}', b"", b'{"paused":{"":-1}}', b'{"paused":{"":1e300}}', b'{"paused":{},"more":1}']
)
def test_what_anybody_has_the_server_put_under_the_key_of_a_pause_neither_pauses_nor_resumes(
    lab: MakeLab, garbage: bytes
) -> None:
    one = lab(asking())
    one.start()
    one.work()

    async def put(number: int) -> None:
        await (await one.client.bus.bucket(subjects.applied(APP))).put(
            subjects.pause_key("asking", number), garbage, revision=0
        )

    one.run(put(1))
    publish(one, "a")
    one.advance(5)
    assert texts(one) == ["a"]
    pause(one)
    for number in (3, 4, 999_999_999_999):
        one.run(put(number))
    publish(one, "b")
    one.advance(5)
    assert texts(one) == ["a"]
    resume(one)
    one.advance(5)
    assert texts(one) == ["a", "b"]


def test_two_who_pause_at_the_same_moment_both_get_what_they_want_and_old_changes_are_removed(lab: MakeLab) -> None:
    one = lab(keyed())
    one.start()

    async def go() -> Any:
        bucket = await one.client.bus.bucket(subjects.applied(APP))
        for name in ("in", "by"):
            await pauses.pause(bucket, "asking", name, 5.0)
        await pauses.resume(bucket, "asking", "by")
        return (await pauses.read(bucket))["asking"], sorted(await bucket.items(subjects.pause_prefix()))

    found, keys = one.run(go())
    assert (dict(found.names), keys) == ({"in": 5.0}, ["paused.asking.3"])
    one.drain()
    one.run(delete(one.client.bus, APP, "asking"))
