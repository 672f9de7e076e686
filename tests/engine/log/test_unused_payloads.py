"""Payloads that no kept message names are removed; those that one names never are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, SOURCES, STREAM, Lab

from dspex.bus import subjects
from dspex.bus.errors import ProgramError
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.serving.programs import form
from dspex.bus.serving.programs.states import SavedStates
from dspex.engine.log import commit_log, housekeeping, unused_payloads
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
LARGE = "x" * 300_000
AGE = 100.0  # seconds; an hour in earnest
LATER = 200.0  # seconds, after which several sweeps have gone over what is older than that


@pytest.fixture(autouse=True)
def _frequent_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """And sweeps: nothing goes before a snapshot stands behind it."""
    monkeypatch.setattr(commit_log, "LEAST", 1000)
    monkeypatch.setattr(housekeeping, "EVERY", 20.0)
    monkeypatch.setattr(unused_payloads, "AGE", AGE)


def asking(source: str = "in") -> Topology:
    topology = Topology("asking", retention="30s")
    topology.source(source).predict("text -> answer", name="ask").sink("out")
    return topology


def names(one: Lab) -> set[str]:
    return set(one.server.objects[subjects.objects(APP)])


def named(one: Lab) -> set[str]:
    """What the messages of all streams name."""
    found = [m.headers.get(subjects.CLAIM_CHECK) for s in one.server.streams.values() for m in s.messages.values()]
    return {name for name in found if name}


def test_payloads_go_with_the_messages_that_name_them_and_those_of_sinks_and_letters_stay(lab: MakeLab) -> None:
    one = lab(asking())

    def answer(inputs: Any, work: Any) -> Any:
        if inputs["text"].startswith("bad"):
            raise ProgramError("no")
        return {"answer": "yes"}

    one.answers["ask"] = answer
    one.start(records=30.0)
    one.work()
    one.publish("in", {"text": LARGE})
    one.publish("in", {"text": "bad" + LARGE})
    before = names(one)
    assert len(before) == 2 + 2 + 2 + 2  # events, requests, records (one an error, with its event), output and letter
    for _ in range(60):  # so that there are snapshots, behind which what is old is not needed
        one.publish("in", {"text": "small"})
    one.advance(LATER)
    assert names(one) == named(one) < before
    assert len(one.outputs("out")) == 61
    (letter,) = one.letters()
    assert letter.event.data == {"text": "bad" + LARGE}


def test_a_payload_is_not_removed_for_an_hour_after_it_was_put_last(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    bucket = one.run(one.client.bus.objects(subjects.objects(APP)))
    early = one.run(bucket.put(b"early"))
    one.advance(AGE - 5)
    assert names(one) == {early}
    late = one.run(bucket.put(b"late"))
    touched = one.run(bucket.put(b"touched"))
    one.advance(AGE / 2 + 15)
    assert names(one) == {late, touched}
    one.run(bucket.put(b"touched"))
    one.advance(AGE / 2 + 15)
    assert names(one) == {touched}


def test_a_payload_that_a_message_in_a_stream_of_others_names_is_kept(lab: MakeLab) -> None:
    one = lab(asking("theirs.in"))
    one.run(one.client.bus.ensure_stream(StreamConfig("THEIRS", ["theirs.>"])))
    one.start(records=30.0)
    one.publish("theirs.in", {"text": LARGE})
    (message,) = one.server.streams["THEIRS"].messages.values()
    one.advance(LATER)
    assert message.headers[subjects.CLAIM_CHECK] in names(one)


def test_a_payload_is_kept_for_the_second_message_that_names_it_when_the_first_is_gone(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    bus = one.client.bus
    name = one.run(one.run(bus.objects(subjects.objects(APP))).put(b"twice"))
    for _ in range(2):
        one.store(NewMessage("out", b"", {subjects.CLAIM_CHECK: name}))
    first, second = [s for s, m in one.server.streams[STREAM].messages.items() if m.subject == "out"]
    one.advance(LATER)
    one.run(bus.delete(STREAM, second))
    one.advance(LATER)
    assert name in names(one)
    one.run(bus.delete(STREAM, first))
    one.advance(LATER)
    assert name not in names(one)
    assert SOURCES in one.server.streams


def test_a_payload_is_kept_while_the_stream_that_names_it_is_away(lab: MakeLab) -> None:
    one = lab(asking("theirs.in"))
    one.run(one.client.bus.ensure_stream(StreamConfig("THEIRS", ["theirs.>"])))
    one.start(records=30.0)
    one.publish("theirs.in", {"text": LARGE})
    (message,) = one.server.streams["THEIRS"].messages.values()
    del one.server.streams["THEIRS"]  # until it is restored
    one.advance(LATER)
    assert message.headers[subjects.CLAIM_CHECK] in names(one)
    one.kill()
    one.start(records=30.0)
    one.advance(LATER)
    assert message.headers[subjects.CLAIM_CHECK] in names(one)


def test_the_state_of_a_saved_version_is_kept_though_no_message_names_it(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    signature = {"instructions": "Answer.", "fields": []}
    state = form.read({"write": {"demos": [], "signature": signature}})
    version = one.run(SavedStates(one.client.bus, APP).put("draft", state))
    one.advance(LATER)
    assert names(one) == {version.headers[subjects.CLAIM_CHECK]}
    assert one.run(SavedStates(one.client.bus, APP).load(version)) == state
