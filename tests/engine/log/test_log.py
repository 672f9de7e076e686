"""The commit log: snapshots of any size, damaged ones, and what a recovery reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
from engine_lab import APP, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import BusError, Fenced
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import Ack, BusEvents, NewMessage
from dspex.engine.log import commit_log, housekeeping
from dspex.engine.log.entries import requests_in, sum_of, unpack, was_read
from dspex.engine.log.latest import look
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
LOG = subjects.log(APP, "logged", "s1", 0)
WORK = subjects.work(APP, "lightweight", "logged", "ask")
SNAPSHOT_AFTER = 8_000  # bytes of entries, about 30 of them; 64 KiB in earnest
MANY = 150


@pytest.fixture(autouse=True)
def _frequent_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_log, "LEAST", SNAPSHOT_AFTER)


def logged() -> Topology:
    topology = Topology("logged")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    return topology


def entries(one: Lab) -> list[tuple[int, Any]]:
    return [(m.sequence, unpack(m.data)) for m in one.messages(LOG)]


def snapshots(one: Lab) -> list[int]:
    return [sequence for sequence, entry in entries(one) if "snapshot" in entry]


def test_a_recovery_reads_from_the_last_snapshot_on(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    for n in range(MANY):
        one.publish("in", {"text": str(n)})
    assert len(snapshots(one)) >= 2
    one.drain()
    (_, named) = next((s, e) for s, e in reversed(entries(one)) if "snapshot" in e)
    one.run(one.client.bus.purge(STREAM, LOG, below=named["snapshot"][0] + 1))  # what lies before it is not read
    host = one.start()
    p = host.runners[0].partitions[0]
    assert len(p.tables.calls.rows) == MANY
    one.work()
    one.advance(5)
    assert len(one.outputs("out")) == MANY


class SlowSnapshots(MemoryBus):
    """Takes a second to store each piece of a snapshot, while commits go on."""

    async def publish(self, draft: NewMessage, *, timeout: float = 5.0) -> Ack:
        if draft.subject.endswith(".snapshot"):
            await asyncio.sleep(1.0)
        return await super().publish(draft, timeout=timeout)


def test_a_snapshot_that_is_slower_than_commits_is_stored_once_and_whole(lab: MakeLab) -> None:  # I10
    one = lab(logged(), max_payload=10_000)
    one.start(bus=SlowSnapshots(one.server, BusEvents()))
    for n in range(MANY):
        one.publish("in", {"text": str(n)})
        one.advance(0.2)
    named = [entry["snapshot"] for _, entry in entries(one) if "snapshot" in entry]
    assert len(named) >= 2
    assert all(at > 0 for at, *_ in named)
    one.kill()
    one.run(one.client.bus.purge(STREAM, LOG, below=named[-1][0] + 1))
    one.start()
    one.work()
    one.advance(20)
    assert sorted(int(o["text"]) for o in one.outputs("out")) == list(range(MANY))


def test_a_snapshot_larger_than_a_message_is_kept_in_pieces(lab: MakeLab) -> None:  # I10
    one = lab(logged(), max_payload=10_000)
    one.start()
    for n in range(MANY):
        one.publish("in", {"text": str(n)})
    for n in range(2):
        one.drain()
        one.start()
        for m in range(MANY // 3):
            one.publish("in", {"text": f"{n}.{m}"})
    _, last = next((s, e) for s, e in reversed(entries(one)) if "snapshot" in e)
    at, first, final, _, size = last["snapshot"]
    assert size > 10_000
    assert len(one.messages(subjects.snapshot(APP, "logged", "s1", 0))) >= final - first + 1 >= 2
    assert at < first
    one.kill()
    one.start()
    one.work()
    one.advance(5)
    assert len(one.outputs("out")) == MANY + 2 * (MANY // 3)
    assert one.letters() == []


def damage(one: Lab, sequence: int) -> None:
    stream = one.server.streams[STREAM]
    message = stream.messages[sequence]
    entry = dict(unpack(message.data))
    at, first, last, _, size = entry["snapshot"]
    entry["snapshot"] = at, first, last, b"not the digest", size
    stream.messages[sequence] = message._replace(data=msgpack.packb(entry))


def test_a_damaged_snapshot_is_passed_over_for_the_one_before(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    for n in range(MANY):
        one.publish("in", {"text": str(n)})
    one.kill()
    damage(one, snapshots(one)[-1])
    one.start()
    one.work()
    one.advance(5)
    assert sorted(int(o["text"]) for o in one.outputs("out")) == list(range(MANY))


def test_an_engine_that_cannot_read_its_log_says_so_and_does_not_begin_anew(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    for n in range(MANY):
        one.publish("in", {"text": str(n)})
    one.kill()
    for sequence in snapshots(one)[-2:]:
        damage(one, sequence)
    one.run(one.client.bus.purge(STREAM, LOG, below=snapshots(one)[-2]))  # as housekeeping does
    with pytest.raises(BusError) as e:
        one.start()
    assert e.value.code == "DX411"
    one.hosts.clear()


def test_looking_at_a_log_changes_nothing_and_shows_the_open_calls(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    for n in range(3):
        one.publish("in", {"text": str(n)})
    before = len(one.messages(LOG))
    tables = one.run(look(one.client.bus, APP, "logged", "s1", 0))
    assert (len(tables.calls.rows), tables.position("source").sequence > 0) == (3, True)
    assert len(one.messages(LOG)) == before
    assert len(one.run(look(one.client.bus, APP, "logged", "s1", 7)).calls.rows) == 0


def test_each_log_entry_says_how_many_messages_it_covers(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    one.publish("in", {"text": "a"})
    sequence, entry = entries(one)[-1]
    assert (entry["kind"], entry["covers"]) == ("commit", 1)
    work = one.messages(subjects.work(APP, "lightweight", "logged", "ask"))
    assert [m.sequence for m in work] == [sequence - 1]


def test_a_commit_of_requests_alone_is_an_entry_that_holds_them_and_then_the_requests(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    one.publish("in", {"text": "the first one behind a claim is a batch"})
    one.publish("in", {"text": "a"})
    sequence, entry = entries(one)[-1]
    assert (entry["kind"], entry["covers"]) == ("commit", 0)
    (ask,) = requests_in(entry).values()
    *_, sent = one.messages(WORK)
    assert (sent.sequence, sent.data, sent.headers) == (sequence + 1, ask.data, ask.headers)
    one.work()
    one.advance(5)
    assert len(one.outputs("out")) == 2
    assert one.differences() == []


def test_a_request_that_no_server_takes_is_in_no_entry_and_costs_no_other_call_twice(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    one.publish("in", {"text": "the first one behind a claim is a batch"})

    async def published() -> None:
        for text, run in (("good", "run"), ("bad", "a\nb")):  # as another client can, which writes headers as it likes
            one.server.publish(NewMessage("in", b'{"text":"%b"}' % text.encode(), {subjects.RUN: run}))

    one.run(published())
    one.work()
    one.advance(30)
    assert sorted(request.inputs["text"] for request in one.asked) == ["good", "the first one behind a claim is a batch"]
    assert [letter.event.data for letter in one.letters()] == [{"text": "bad"}]
    assert [runner.counters["unreadable"] for runner, _ in one.partitions()] == [0]
    assert len(one.outputs("out")) == 2


class Mute(MemoryBus):
    """A connection whose process dies between an entry and its requests."""

    held: list[NewMessage] = []

    async def publish_all(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> list[Ack | BusError]:
        if any(draft.of for draft in drafts):
            self.held = [*drafts]
            await asyncio.Event().wait()
        return await super().publish_all(drafts, timeout=timeout)


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_who_recovers_a_log_sends_what_was_not_sent_and_nobody_else_does(lab: MakeLab, sent: int) -> None:
    topology = Topology("logged")
    two = topology.source("in").flat_map(lambda d: [d, {"text": d["text"] + "!"}], name="two")
    two.predict("text -> answer", name="ask").sink("out")
    one = lab(topology)
    bus = Mute(one.server, BusEvents())
    one.start(bus=bus)
    one.publish("in", {"text": "a"})
    one.publish("in", {"text": "b"})
    assert (len(bus.held), len(one.messages(WORK))) == (2, 2)
    for draft in bus.held[:sent]:
        one.store(draft)
    one.kill()
    one.start()
    one.advance(5)
    assert len(one.messages(WORK)) == 4
    with pytest.raises(Fenced):
        one.store(bus.held[0])
    one.kill()
    one.start()
    one.work()
    one.advance(60)
    assert sorted(o["text"] for o in one.outputs("out")) == ["a", "a!", "b", "b!"]
    assert len(one.asked) == 4
    assert one.differences() == []


def test_a_request_that_is_sent_late_says_the_time_that_is_left_and_none_is_sent_when_that_is_over(lab: MakeLab) -> None:
    one = lab(logged())
    one.start(bus=Mute(one.server, BusEvents()))
    one.publish("in", {"text": "first"})
    one.publish("in", {"text": "late"})
    one.kill()
    one.advance(400)
    one.start(bus=Mute(one.server, BusEvents()))
    one.kill()
    one.advance(100)
    one.start()
    first, late = one.requests()
    assert first.left == 600
    assert 90 < late.left < 101
    one.kill()
    one.publish("in", {"text": "too late"})
    one.start(bus=Mute(one.server, BusEvents()))
    one.publish("in", {"text": "of an entry"})
    one.kill()
    one.advance(700)
    one.start()
    assert len(one.requests()) == 3
    one.advance(5)
    assert sorted(letter.event.data["text"] for letter in one.letters() if letter.event.data) == [
        "first", "late", "of an entry", "too late",
    ]  # fmt: skip


def test_a_call_is_made_again_with_the_event_in_the_entry_that_holds_its_request(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    one.publish("in", {"text": "first"})
    one.publish("in", {"text": "again"})
    one.run(one.client.bus.purge(STREAM, WORK, below=1 << 40))  # where an older record, or a retry, would look otherwise
    one.kill()
    one.start()
    one.advance(700)  # the deadline
    letters = {letter.event.data["text"] for letter in one.letters() if letter.event.data}
    assert letters == {"again"}, "the request of the first one was the only copy of its event"


def test_an_entry_that_holds_the_request_of_an_open_call_is_kept(lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EVERY", 60.0)
    monkeypatch.setattr(commit_log, "LEAST", 4_000)
    topology = Topology("kept", retention="30s")
    topology.source("in").predict("text -> answer", name="ask", deadline="10m").sink("out.kept")
    one = lab(topology)
    one.start(records=30.0)
    one.work()
    one.publish("in", {"text": "0"})
    one.kill_workers()
    one.publish("in", {"text": "slow"})  # its request lies in its entry
    ((at, _),) = [
        (m.sequence, ask)
        for m in one.messages(subjects.log(APP, "kept", "s1", 0))
        for ask in requests_in(unpack(m.data)).values()
    ]
    one.run(one.client.bus.purge(STREAM, subjects.work_of(APP, "kept"), below=1 << 40))
    one.work()
    for n in range(48):
        one.publish("in", {"text": str(n)})
    one.advance(130)
    assert one.messages(subjects.log(APP, "kept", "s1", 0))[0].sequence <= at
    one.advance(700)
    assert [letter.event.data for letter in one.letters()] == [{"text": "slow"}]


def test_a_log_that_is_whole_is_read_without_any_of_its_snapshots(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    for n in range(MANY):
        one.publish("in", {"text": str(n)})
    one.kill()
    for sequence in snapshots(one):
        damage(one, sequence)
    one.start()
    one.work()
    one.advance(5)
    assert sorted(int(o["text"]) for o in one.outputs("out")) == list(range(MANY))


def test_a_claim_says_who_owns_and_with_what_and_a_commit_names_its_claim_and_the_entry_before(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    one.publish("in", {"text": "a"})
    one.publish("in", {"text": "b"})
    (at, claim), (first, commit), (_, other) = entries(one)
    assert (claim["kind"], claim["epoch"], claim["owner"], claim["manifest"]) == ("claim", 1, "a", 1)
    assert claim["build"]["graph"] == logged().digest
    assert sorted(claim["build"]) == ["codecs", "dspex", "files", "functions", "graph", "hash seed", "python"]
    assert (commit["claim"], commit["after"]) == (at, at)
    assert (other["claim"], other["after"]) == (at, first)
    named = ["after", "base", "claim", "covers", "digest", "kind", "older", "read", "tables", "taken", "time", "v"]
    assert sorted(commit) == named


def test_epochs_count_on_where_the_claim_was_removed_and_an_entry_with_a_snapshot_says_it(lab: MakeLab) -> None:
    one = lab(logged())
    one.start()
    for n in range(MANY):
        one.publish("in", {"text": str(n)})
    one.drain()
    one.run(one.client.bus.purge(STREAM, LOG, below=snapshots(one)[-1]))  # the claim with it
    one.start("b")
    claims = [entry for _, entry in entries(one) if entry["kind"] == "claim"]
    assert [(claim["epoch"], claim["owner"]) for claim in claims] == [(2, "b")]
    one.work()
    one.advance(5)
    assert len(one.outputs("out")) == MANY


@pytest.mark.long
def test_engines_that_live_for_two_minutes_only_remove_what_is_over(lab: MakeLab) -> None:
    topology = Topology("brief", retention="30s")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    one, many = lab(topology), 400
    one.work()
    for _ in range(3):
        one.start(records=30.0)
        for n in range(many):
            one.publish("in", {"text": str(n)})
        one.advance(120)
        one.kill()
    assert len(one.messages("out")) == 3 * many
    of = {"log": subjects.log(APP, "brief", "s1", 0), "records": subjects.record(APP, "*", "brief", "s1", 0), "source": "in"}
    left = {what: len(one.messages(subject)) for what, subject in of.items()}
    assert max(left.values()) < 2 * many, left


def test_an_event_is_found_among_those_that_a_commit_has_taken_and_not_across_two_of_them() -> None:
    mine, others = sum_of(b"an event", 7).to_bytes(4), b"".join(sum_of(b"another", at).to_bytes(4) for at in range(50))
    across = b"\x00\x00" + mine + b"\x00\x00"
    assert was_read({"read": others + mine}, 7, b"an event")
    assert was_read({"read": across + mine}, 7, b"an event")
    for read in (others, across, b""):
        assert not was_read({"read": read}, 7, b"an event")
    assert not was_read({"read": mine}, 8, b"an event"), "it lay somewhere else"
    far = (3 << 32) + 7
    assert was_read({"read": sum_of(b"an event", far).to_bytes(4)}, far, b"an event")
    assert was_read({}, 7, b"an event"), "there were no sums then"
