"""Redriving a dead letter runs its event once, wherever it is cut off and however late it is asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from engine_lab import APP, STREAM, Cut, Lab

from dspex.bus import nats, subjects
from dspex.bus.memory.server import MemoryBus
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus
from dspex.bus.port import PAGE_MESSAGES, BusEvents, NewMessage, StreamConfig
from dspex.bus.records import Letter, NodeEvent, Origin, pack_frame
from dspex.engine.client import letters
from dspex.engine.graph import manifest
from dspex.engine.hosting.apply import apply
from dspex.engine.log import commit_log, housekeeping, redriven
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
HOUR = 3600.0
LATER = 310.0  # seconds: over twice as long as a stream knows an id again, and five sweeps


@pytest.fixture
def _frequent_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EVERY", 60.0)  # 600 in earnest


def failed(make: MakeLab, count: int = 1, **options: Any) -> Lab:
    """A lab with dead letters whose events would now succeed."""
    broken = [True]

    def check(data: Any) -> Any:
        if broken:
            raise ValueError("not yet")
        return data

    topology = Topology("repaired", retention="30s")
    topology.source("in").map(check, name="check").sink("out")
    one = make(topology)
    one.start(**options)
    for n in range(count):
        one.publish("in", {"n": n})
    broken.clear()
    assert len(one.letters()) == count
    return one


def numbers(one: Lab) -> list[int]:
    return [data["n"] for data in one.outputs("out")]


def markers(one: Lab) -> list[Message]:
    return one.messages(subjects.redriven(APP))


def cut_off(one: Lab, at: int, landed: bool) -> None:
    """Redrive all letters by a client that dies at batch number `at`."""
    found, bus = one.letters(), Cut(one.server, at, landed)

    async def go() -> None:
        task = asyncio.ensure_future(letters.redrive(bus, APP, found))
        await bus.cut.wait()
        task.cancel()

    one.run(go())


@pytest.mark.parametrize("landed", [True, False])
def test_a_redrive_that_died_around_its_write_and_is_asked_for_an_hour_later_runs_the_event_once(
    lab: MakeLab, landed: bool
) -> None:
    one = failed(lab)
    one.kill()  # nobody does the housekeeping
    cut_off(one, 1, landed)
    one.advance(HOUR)
    assert one.run(one.client.redrive(one.letters())) == 1
    one.start()
    one.advance(1)
    assert (numbers(one), one.letters()) == ([0], [])


@pytest.mark.parametrize("at", [1, 4, 10])
def test_a_redrive_of_many_letters_that_died_half_way_runs_each_event_once(lab: MakeLab, at: int) -> None:
    one = failed(lab, 10)
    cut_off(one, at, landed=True)
    one.advance(1)
    one.kill()  # nobody does the housekeeping
    one.advance(300)
    one.start()
    one.advance(1)
    assert numbers(one) == list(range(at))
    assert one.run(one.client.redrive(one.letters())) == 11 - at
    one.advance(1)
    assert (numbers(one), one.letters()) == (list(range(10)), [])
    one.run(swept(one))
    assert len(markers(one)) == 1


def test_clients_that_redrive_the_same_letters_at_once_run_each_event_once(lab: MakeLab) -> None:
    one = failed(lab, 12)

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(letters.redrive(one.server.connect(), APP, found) for _ in range(4)))

    found = one.letters()
    assert sum(one.run(all_of_them())) >= 12
    one.advance(1)
    assert (sorted(numbers(one)), one.letters()) == (list(range(12)), [])


@pytest.mark.usefixtures("_frequent_sweeps")
def test_who_listed_a_letter_before_it_was_redriven_cannot_run_it_again_however_late(lab: MakeLab) -> None:
    one = failed(lab, 3)
    before = one.letters()
    assert one.run(one.client.redrive(before)) == 3
    one.advance(LATER)
    assert one.run(one.client.redrive(before)) == 0
    one.advance(1)
    assert numbers(one) == [0, 1, 2]


class Pausing(MemoryBus):
    """A connection that waits before its write until it is let go on."""

    asked: asyncio.Event
    go_on: asyncio.Event

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        self.asked.set()
        await self.go_on.wait()
        return await super().commit(drafts, timeout=timeout)


def test_a_redrive_that_was_frozen_before_its_write_while_another_one_finished_runs_nothing_again(lab: MakeLab) -> None:
    one = failed(lab, 2)
    first, second = one.letters()

    async def go() -> int:
        frozen = Pausing(one.server, BusEvents())
        frozen.asked, frozen.go_on = asyncio.Event(), asyncio.Event()
        task = asyncio.ensure_future(letters.redrive(frozen, APP, [second]))
        await frozen.asked.wait()  # it has seen its letter, and is about to write
        await one.client.redrive([second, first])
        frozen.go_on.set()
        return await task

    assert one.run(go()) == 0
    one.advance(1)
    assert sorted(numbers(one)) == [0, 1]


def test_a_batch_of_which_a_server_kept_only_the_marker_is_written_again(lab: MakeLab) -> None:
    one = failed(lab, 2)
    first, _ = one.letters()
    one.store(NewMessage(subjects.redriven(APP), orjson.dumps({"letter": first.sequence})))
    one.publish("in", {"n": 2})  # something else lies where its frame would be
    assert one.run(one.client.redrive(one.letters())) == 2
    one.advance(1)
    assert sorted(numbers(one)) == [0, 1, 2]
    assert len(markers(one)) == 1


@pytest.mark.parametrize("garbage", [b"", b"null", b"{}", b'{"letter": "x"}', b"\xff", b'{"letter": 1}'])
def test_garbage_among_the_markers_stops_no_redrive_and_removes_nothing(lab: MakeLab, garbage: bytes) -> None:
    one = failed(lab, 2)
    before = len(one.messages(">", STREAM))
    one.store(NewMessage(subjects.redriven(APP), garbage))
    one.run(swept(one))
    assert len(one.messages(">", STREAM)) == before + 1
    assert one.run(one.client.redrive(one.letters())) == 2
    one.advance(1)
    assert numbers(one) == [0, 1]


async def swept(one: Lab) -> None:
    bus = one.client.bus
    applied = await manifest.of_application(bus, APP)
    await housekeeping.sweep(bus, APP, "repaired", applied, records=HOUR, now=one.server.now)


@pytest.mark.usefixtures("_frequent_sweeps")
def test_housekeeping_finishes_a_redrive_that_was_cut_off_before_it_removes_what_was_read(
    lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_log, "LEAST", 1)  # bytes of entries until a snapshot: nothing is removed before two of them
    one = failed(lab, 3, records=30.0)
    left = one.letters()
    cut_off(one, 2, landed=True)
    for n in range(3, 10):
        one.publish("in", {"n": n})
    one.advance(LATER)  # past some sweeps
    assert one.messages(subjects.edge(APP, "repaired", "s1", 0)) == []
    assert [letter.sequence for letter in one.letters()] == [left[2].sequence]
    assert one.run(one.client.redrive(left)) == 1
    one.advance(1)
    assert sorted(numbers(one)) == list(range(10))


# -- many large ones -----------------------------------------------------------------------------------------------------
class Counting(MemoryBus):
    """Notes how much each answer holds."""

    largest = 0
    most = 0

    def _note(self, found: list[Message]) -> list[Message]:
        self.largest = max(self.largest, sum(len(m.data) for m in found))
        self.most = max(self.most, len(found))
        return found

    async def scan(self, stream: str, filters: Sequence[str], *, start: int, stop: int) -> list[Message]:
        return self._note(await super().scan(stream, filters, start=start, stop=stop))

    async def page(
        self, stream: str, filters: Sequence[str], *, start: int, stop: int, most: int = PAGE_MESSAGES
    ) -> list[Message]:
        return self._note(await super().page(stream, filters, start=start, stop=stop, most=most))


def test_a_thousand_large_letters_are_never_read_at_once(lab: MakeLab) -> None:
    one = failed(lab)
    (model,) = one.letters()
    for n in range(1000):
        event = NodeEvent("in", Origin(f"e{n}", "in", f"r{n}"), "application/json", b'"' + b"x" * 40_000 + b'"')
        redrive = subjects.edge(APP, "repaired", "s1", 0)
        letter = Letter("repaired", "check", event, redrive, {"type": "DataError", "message": "no"})
        one.store(NewMessage(subjects.dead(APP, "repaired", "check"), letter.pack(), {subjects.RUN: f"r{n}"}))
    bus = Counting(one.server, BusEvents())

    async def go() -> int:
        number = len([d.sequence async for d in letters.listing(bus, APP)])
        await redriven.finish(bus, APP)
        applied = await manifest.of_application(bus, APP)
        await housekeeping.sweep(bus, APP, "repaired", applied, records=HOUR, now=one.server.now + 30 * 24 * HOUR)
        return number

    assert one.run(go()) == 1001
    assert model.sequence
    assert bus.most <= PAGE_MESSAGES
    assert bus.largest <= 17 << 20


# -- on the real server --------------------------------------------------------------------------------------------------
class Killed(NatsBus):
    """A client that dies when it has written, and is about to remove the letter."""

    async def delete(self, stream: str, sequence: int) -> None:
        raise asyncio.CancelledError


@pytest.mark.asyncio
async def test_on_the_real_server_a_redrive_that_died_behind_its_write_writes_its_event_once(
    nats_url: str, unique: str
) -> None:
    bus = await nats.connect(nats_url)
    dying = Killed(bus._connection)
    name, out = subjects.stream(unique), subjects.edge(unique, "t", "s1", 0)
    await bus.ensure_stream(StreamConfig(name, subjects.own_subjects(unique), duplicate_window=1.0))
    topology = Topology("t")
    topology.source(f"{unique}.in").sink(f"{unique}.out")
    await apply(bus, unique, [topology.graph])
    source = f"{unique}.in"
    events = [NodeEvent(source, Origin(f"e{n}", source, f"r{n}"), "application/json", b"%d" % n) for n in range(3)]
    for event in events:
        letter = Letter("t", "check", event, out, {"type": "DataError", "message": "no"})
        await bus.publish(NewMessage(subjects.dead(unique, "t", "check"), letter.pack()))
    found = [d async for d in letters.listing(bus, unique)]
    for one in found[:2]:
        with pytest.raises(asyncio.CancelledError):
            await letters.redrive(dying, unique, [one])
    assert len([d async for d in letters.listing(bus, unique)]) == 3
    assert await letters.redrive(bus, unique, found) == 3
    assert await letters.redrive(bus, unique, found) == 0
    assert [d async for d in letters.listing(bus, unique)] == []
    frames = await bus.scan(name, [out], start=1, stop=100)
    assert [m.headers[subjects.LETTER] for m in frames] == [str(d.sequence) for d in found]
    assert [m.data for m in frames] == [pack_frame([event]) for event in events]
    assert await bus.count(name, [subjects.redriven(unique)]) == 1
    await bus.close()
