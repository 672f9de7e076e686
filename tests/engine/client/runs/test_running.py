"""Runs that are not done are listed without a look at those that are, wherever what they wait for stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, RetryLater
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.serving.keys.keyring import Keyring
from dspex.engine.client.client import Client
from dspex.engine.client.following import backwards
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.graph import pauses
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
MANY = 3000


def waiting() -> tuple[Topology, Topology]:
    """What waits for a model, a person, another time, an owner of its key, or another topology; most is done at once."""
    first, second = Topology("first"), Topology("second")

    def later(data: dict[str, Any]) -> dict[str, Any]:
        raise RetryLater(after=3600.0)

    source = first.source("in", partitions=4)
    source.filter("what == 'model'").predict("text -> intent", name="ask").sink("intents")
    source.filter("what == 'person'").approve(name="ok", show=["text"]).sink("approved")
    source.filter("what == 'later'").map(later, name="later").sink("late")
    source.filter("what == 'hop'").key_by("text", name="by_text").map(lambda data: data, name="same").sink("between")
    source.filter("what == 'row'").map(lambda data: {"text": "x" * 60}, name="row").sink("rows")
    second.source("between").predict("text -> intent", name="classify").sink("classified")
    return first, second


def running(one: Lab, **options: Any) -> list[str]:
    async def found() -> list[RunInfo]:
        return [info async for info in one.client.runs(status="running", **options)]

    infos: list[RunInfo] = one.run(found())
    assert {info.status for info in infos} <= {"running"}
    return [info.id for info in infos]


def many(one: Lab, count: int = MANY) -> None:
    for _ in range(count // 100):
        one.run(one.client.bus.publish_all([NewMessage("in", b'{"text":"a","what":"row"}')] * 100))
        one.advance(1)


@contextmanager
def counted(one: Lab) -> Iterator[list[Message]]:
    """The messages that are read meanwhile, from whatever stream."""
    bus, found = one.client.bus, list[Message]()

    def counting(read: Callable[..., Any]) -> Callable[..., Any]:
        async def reads(stream: str, filters: Sequence[str], **options: Any) -> list[Message]:
            messages: list[Message] = await read(stream, filters, **options)
            found.extend(messages)
            return messages

        return reads

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bus, "scan", counting(bus.scan))
        patch.setattr(bus, "page", counting(bus.page))
        yield found


@pytest.mark.parametrize("sealed", [False, True])
def test_runs_that_wait_for_anything_are_listed_and_none_that_is_done(lab: MakeLab, sealed: bool) -> None:
    one = lab(*waiting())
    bus = one.server.connect()
    if sealed:
        bus.sealing = one.client.bus.sealing = Keyring(bus, APP, "KEY", {"KEY": "5" * 64})
    one.start(bus=bus)
    begun = list[str]()
    for what in ("model", "row", "person", "later", "hop"):
        begun.append(one.publish("in", {"text": what, "what": what}))
        one.advance(1)
    many(one, 200)
    open_ones = [begun[4], begun[3], begun[2], begun[0]]
    assert running(one) == open_ones
    assert running(one, limit=2) == open_ones[:2]
    assert running(one, topology="second") == [begun[4]]
    assert running(one, since="1s") == []
    one.work(bus=bus)
    one.advance(1)
    assert running(one) == [begun[3], begun[2]]


def test_of_runs_that_are_done_next_to_nothing_is_read(lab: MakeLab) -> None:
    one = lab(*waiting())
    one.start()
    run = one.publish("in", {"text": "a", "what": "person"})
    many(one)
    last = one.publish("in", {"text": "b", "what": "model"})
    one.advance(1)
    with counted(one) as read:
        assert running(one, limit=1) == [last]
    assert len(read) < MANY // 3
    assert running(one) == [last, run]


def test_of_what_no_engine_has_taken_only_the_latest_is_read(lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backwards, "_FEW", 64)
    one = lab(*waiting())
    one.start()
    many(one, 300)
    one.drain()
    many(one)
    with counted(one) as read:
        assert len(running(one, limit=10)) == 10
    assert len(read) < MANY // 4
    assert running(one, limit=2) == running(one, limit=10)[:2]


def test_all_that_no_engine_has_taken_is_listed(lab: MakeLab) -> None:
    one = lab(*waiting())
    one.start()
    many(one, 100)
    one.drain()
    done = {message.sequence for message in one.messages("in")}
    many(one, 100)
    runs = running(one, limit=1000)
    assert sorted(one.run(one.client.run(run).history())[0].source.sequence for run in runs) == sorted(
        message.sequence for message in one.messages("in") if message.sequence not in done
    )


async def stopped(one: Lab, node: str) -> None:
    await pauses.pause(await one.client.bus.bucket(subjects.applied(APP)), "first", node, 0.0)


def test_events_over_a_hop_that_nobody_has_taken_are_of_runs_that_are_not_done(lab: MakeLab) -> None:
    one = lab(*waiting())
    one.start()
    one.run(stopped(one, "by_text"))
    one.advance(10)
    runs = [one.publish("in", {"text": f"key {n}", "what": "hop"}) for n in range(5)]
    one.advance(5)
    many(one, 100)
    assert one.messages(subjects.edge(APP, "first", "*", "*")) != []
    assert running(one) == runs[::-1]
    assert running(one, limit=2) == [runs[4], runs[3]]


def test_a_letter_that_is_redriven_while_nothing_runs_makes_its_run_one_that_is_not_done(lab: MakeLab) -> None:
    one = lab(*waiting())
    one.start()
    run = one.publish("in", {"what": "hop"})
    one.advance(1)
    assert running(one) == []
    one.drain()
    one.run(one.client.redrive(one.letters()))
    assert running(one) == [run]


def test_what_is_open_is_told_whoever_owns_it_now(lab: MakeLab) -> None:
    one = lab(*waiting())
    one.start()
    run = one.publish("in", {"text": "a", "what": "model"})
    one.advance(1)
    one.kill()
    one.client = Client(bus=one.server.connect(), app=APP)
    assert running(one) == [run]


@pytest.mark.long
def test_of_many_runs_that_wait_for_long_the_begin_alone_is_read(lab: MakeLab) -> None:
    """Two hundred wait for a person, begun at different times, while others are done."""
    one = lab(*waiting())
    one.start()
    for n in range(40):
        some = [NewMessage("in", b'{"text":"%d","what":"person"}' % n)] * 5
        one.run(one.client.bus.publish_all(some))
        one.advance(15)
    many(one)
    with counted(one) as read:
        runs = running(one, limit=1000)
    assert len(runs) == len(set(runs)) == 200
    few = len(read)
    many(one)
    with counted(one) as read:
        assert running(one, limit=1000) == runs
    assert len(read) < few + MANY // 2

    async def apart() -> list[RunInfo]:
        return [await one.client.run(run).info() for run in runs[:10]]

    async def together() -> list[RunInfo]:
        return [info async for info in one.client.runs(status="running", limit=10)]

    assert one.run(apart()) == one.run(together())


def test_a_status_that_is_none_is_refused_and_not_taken_for_no_runs(lab: MakeLab) -> None:
    one = lab(*waiting())

    async def listed(status: Any) -> list[RunInfo]:
        return [info async for info in one.client.runs(status=status)]

    with pytest.raises(ConfigError, match="status='finished' is none"):
        one.run(listed("finished"))


def keeping() -> Topology:
    """Operators that keep something of an event for long after it has gone on, and one that does not let it go on before."""
    topology = Topology("keeps")
    keyed = topology.source("in").key_by("k")
    keyed.dedupe("k", within="1h", name="once").sink("firsts")
    keyed.stateful(lambda state, data, ctx: (state + 1, [state]), init=int, ttl="1h", name="count").sink("counts")
    keyed.reduce(lambda a, b: {"k": "x", "n": a["n"] + b["n"]}, ttl="1h", name="sum").sink("sums")
    keyed.lookup(topology.source("table").key_by("k"), ttl="1h", name="known").sink("looked")
    keyed.join(topology.source("others").key_by("k"), within="1h", name="pairs").sink("paired")
    topology.source("windowed").key_by("k").window("1h").count(name="hourly").sink("counted")
    return topology


def test_a_run_does_not_wait_until_operators_forget_what_they_keep_of_it(lab: MakeLab) -> None:
    one = lab(keeping())
    one.start()
    for subject in ("table", "others", "in", "in"):
        run = one.run(one.client.publish(subject, {"k": "x", "n": 1}))
        assert one.run(run.wait("10s")).status == "done"
        assert one.run(one.client.run(run.id).info()).status == "done"
    assert running(one) == []
    held = one.run(one.client.publish("windowed", {"k": "x", "n": 1}))
    one.advance(10)
    assert running(one) == [one.run(held.info()).id], "something comes out when the window ends"
