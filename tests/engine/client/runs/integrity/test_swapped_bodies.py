"""A body in the object store that is damaged, or another's, is told as that: never as a difference, or another answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_lab import APP, Lab
from sealed_app import KEYS

from dspex.bus import subjects
from dspex.bus.errors import RecordingIncomplete
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.serving.keys.hashes import hashed, is_damaged
from dspex.bus.serving.keys.keyring import Keyring
from dspex.engine.again.repeat import repeat
from dspex.engine.client.client import Client
from dspex.engine.client.run import Run
from dspex.engine.client.runs.diff import Replay
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
LARGE = 70_000  # times four bytes: too large for a message
SOURCE, REQUEST, RECORD, OUTPUT = "in", f"dspex.{APP}.work.>", subjects.record(APP, "*", "*", "*", "*"), "out"
FRAME, LETTER = subjects.edge(APP, "*", "*", "*"), subjects.dead_pattern(APP)
BODIES = [SOURCE, REQUEST, RECORD, OUTPUT, FRAME, LETTER]
NAMES = ["event", "request", "record", "output", "frame", "letter"]
HARM = ["damaged", "swapped"]


def topology() -> Topology:
    """Each kind of message, of one size: large."""
    made = Topology("words")
    source = made.source("in")
    source.predict("text -> label", name="ask").sink("out")
    source.key_by("key", name="by").map(lambda d: {"text": d["text"] + "!"}, name="shout").sink("shouted")
    source.key_by("key", name="with").validate({"type": "object", "required": ["more"]}, name="refuse").sink("never")
    return made


@pytest.fixture(params=[False, True], ids=["in clear text", "sealed"])
def ran(request: pytest.FixtureRequest, lab: MakeLab) -> tuple[Lab, list[Run]]:
    """Two runs of the same session."""
    one = lab(topology())

    def bus() -> MemoryBus:
        found = one.server.connect()
        found.sealing = Keyring(found, APP, "KEY", KEYS) if request.param else None
        return found

    one.client = Client(bus=bus(), app=APP)
    one.answers["ask"] = lambda inputs, work: {"label": str(inputs["text"]).upper()}
    one.start(bus=bus())
    one.work(bus=bus())
    runs = list[Run]()
    for text in ("good", "evil"):
        runs.append(one.client.run(one.publish("in", {"text": text * LARGE, "key": "k"}, session="ann")))
        one.advance(1)
    return one, runs


def bodies(one: Lab, pattern: str) -> list[tuple[str, Message]]:
    """The messages of a subject, with the streams that they lie in."""
    found = [(name, m) for name, kept in one.server.streams.items() for m in kept.messages.values()]
    return sorted(
        ((name, m) for name, m in found if subjects.matches(pattern, m.subject) and not m.subject.startswith("$")),
        key=lambda one: one[1].sequence,
    )


def harm(one: Lab, pattern: str, how: str) -> None:
    """What the first run has there: its body is changed where it lies, or its claim check is that of the second run."""
    (stream, first), (_, second), *_ = bodies(one, pattern)
    name, objects = first.headers[subjects.CLAIM_CHECK], one.server.objects[subjects.objects(APP)]
    if how == "damaged":
        data, put = objects[name]
        objects[name] = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], put
        return
    headers = {**first.headers, subjects.CLAIM_CHECK: second.headers[subjects.CLAIM_CHECK]}
    one.server.streams[stream].messages[first.sequence] = first._replace(headers=headers)


def again(one: Lab, run: Run | None) -> Replay:
    """The replay of a run from the logs, or of all."""
    found: Replay = one.run(one.client.replay(run.id if run is not None else None, topology=topology()))
    for error in found.incomplete.values():
        raise error
    return found


@pytest.mark.parametrize("how", HARM)
@pytest.mark.parametrize("pattern", BODIES, ids=NAMES)
def test_a_body_that_is_damaged_or_anothers_is_told_by_whatever_reads_the_run(
    ran: tuple[Lab, list[Run]], pattern: str, how: str, tmp_path: Path
) -> None:
    one, (run, other) = ran
    assert again(one, run).same
    harm(one, pattern, how)
    readers: list[Callable[[], Any]] = [
        lambda: one.run(run.export(tmp_path / "run.jsonl")),
        lambda: one.run(one.client.diff(run, run)),
        lambda: asyncio.run(repeat(None, one.run(run.file()), [topology().graph])),
    ]
    for read in readers:
        with pytest.raises(RecordingIncomplete, match="damaged"):
            read()
    one.run(other.export(tmp_path / "other.jsonl"))


@pytest.mark.parametrize("how", HARM)
@pytest.mark.parametrize("pattern", [SOURCE, RECORD, FRAME], ids=["event", "record", "frame"])
def test_a_replay_of_logs_tells_a_body_that_is_not_what_was_taken(ran: tuple[Lab, list[Run]], pattern: str, how: str) -> None:
    one, (run, _) = ran
    assert again(one, None).same
    harm(one, pattern, how)
    for what in (run, None):
        with pytest.raises(RecordingIncomplete, match="damaged"):
            again(one, what)


@pytest.mark.parametrize("pattern", [SOURCE, RECORD, FRAME], ids=["event", "record", "frame"])
def test_a_replay_of_logs_tells_a_body_that_is_stored_nowhere_any_more(ran: tuple[Lab, list[Run]], pattern: str) -> None:
    one, (run, _) = ran
    (_, first), *_ = bodies(one, pattern)
    del one.server.objects[subjects.objects(APP)][first.headers[subjects.CLAIM_CHECK]]
    for what in (run, None):
        with pytest.raises(RecordingIncomplete, match="cannot be read any more"):
            again(one, what)


@pytest.mark.parametrize("header", [subjects.SEALED, subjects.CLAIM_CHECK])
def test_the_hash_of_a_record_is_of_what_is_stored(header: str) -> None:
    message = NewMessage("dspex.a.record.p.t.s.0", b"body", {header: "x"})
    stored = Message(message.subject, b"body", dict(hashed(message).headers or {}), 1, 0.0)
    assert not is_damaged(stored)
    assert is_damaged(stored._replace(data=b"another", headers={**stored.headers, header: "y"}))
