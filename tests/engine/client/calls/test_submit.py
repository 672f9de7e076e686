"""Submitted calls: they outlive who asks, the engine and the worker, and are made once."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_lab import APP, Lab

import dspex
from dspex.bus import codecs, subjects
from dspex.bus.errors import (
    CallTimeout,
    ConfigError,
    DecodeError,
    LMUnavailable,
    NotAllowed,
    NotStored,
    ProgramError,
    RunNotFound,
)
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.memory.handles import MemoryInbox, MemorySubscription
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, NewMessage
from dspex.bus.records import CallRecord
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.client import letters
from dspex.engine.client.call import Result
from dspex.engine.client.client import Client
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Retry
from dspex.engine.graph.submitted import NODE, submitted

MakeLab = Callable[..., Lab]


PROGRAM, ANY_KIND = (b64encode(CallSpec(kind, "os:system", "text -> reply").packed).decode() for kind in ("program", "*"))

CHANGES: list[dict[str, Any]] = [
    {"pool": "other"},
    {"spec": PROGRAM},
    {"spec": ANY_KIND},
    {"spec": 5},
    {"spec": "$"},
    {"retry": {"attempts": 0}},
    {"deadline": -1.0},
    {"client": "."},
]


class Looking(MemoryBus):
    """A connection that notes what answers were looked for."""

    def __init__(self, server: MemoryServer, events: BusEvents) -> None:
        super().__init__(server, events)
        self.looked: list[str] = []

    async def multi_last(self, stream: str, subjects: Sequence[str]) -> dict[str, Message]:
        self.looked += subjects
        return await super().multi_last(stream, subjects)


class Deaf(MemoryBus):
    """A connection on which all that is not stored is lost."""

    async def subscribe(self, subject: str, handler: Any, **options: Any) -> MemorySubscription:
        async def lost(message: Message) -> None:
            pass

        return await super().subscribe(subject, lost, **options)


class Dying(MemoryBus):
    """The connection of a worker that dies when it has stored a record: it tells nobody, and acknowledges nothing."""

    def tell(self, subject: str, data: bytes, **options: Any) -> None:
        pass

    async def publish_all(self, drafts: Sequence[NewMessage], **options: Any) -> Any:
        if any(".answer." in draft.subject for draft in drafts):
            await asyncio.Event().wait()
        return await super().publish_all(drafts, **options)


class Bob(MemoryBus):
    """The connection of another user."""

    def inbox(self, take: Callable[[Message], None]) -> MemoryInbox:
        inbox = super().inbox(take)
        inbox.subject = inbox.subject.replace("_INBOX", "_INBOX_bob")
        return inbox


class Submits:
    """As an engine with `engine.submit = true` hosts it."""

    def __init__(self, *pools: str) -> None:
        self.graph: Graph = submitted(APP, pools or ("lightweight",))


def made(lab: MakeLab, *topologies: Any) -> Lab:
    one = lab(*topologies, Submits())
    one.start()
    one.answers[NODE] = lambda inputs, request: {"reply": f"re: {inputs['text']}"}
    return one


def submit(one: Lab, what: Any = "text -> reply", text: str = "hi", **options: Any) -> dspex.Run:
    found: dspex.Run = one.run(one.client.submit(what, {"text": text}, **options))
    one.loop.settle()
    return found


def test_a_submitted_call_is_made_and_any_process_has_its_result(lab: MakeLab) -> None:
    one = made(lab)
    run = submit(one, dspex.chain_of_thought("text -> reply", timeout="20s", deadline="2m"))
    one.work()
    result: Result[Any] = one.run(run.result("1m"))
    assert (result.data, result.worker, result.attempts) == ({"reply": "re: hi"}, "lab", 1)
    (asked,) = one.asked
    assert (asked.topology, asked.node, asked.spec.kind) == (subjects.SUBMITTED, NODE, "chain_of_thought")
    assert (asked.timeout, round(asked.left)) == (20.0, 120)
    again: Result[Any] = one.run(one.client.run(run.id).result("1m"))
    assert again == result
    assert one.differences() == []


def test_the_worker_tells_the_answer_though_no_engine_lives_that_could(lab: MakeLab) -> None:
    one = made(lab)
    run = submit(one)
    one.advance(1.0)  # the engine has made the call
    one.kill()
    one.work()
    assert one.run(run.result("1s")).data == {"reply": "re: hi"}


def test_who_waits_is_told_and_looks_for_nothing(lab: MakeLab) -> None:
    one = made(lab)
    one.work()
    bus = Looking(one.server, BusEvents())
    run = one.run(Client(bus=bus, app=APP).submit("text -> reply", {"text": "hi"}))
    assert one.run(run.result("1m")).data == {"reply": "re: hi"}
    assert bus.looked == []


def test_an_answer_does_not_wait_for_its_engine_which_closes_some_calls_together(lab: MakeLab) -> None:
    one = made(lab)
    one.work()
    entries = subjects.log(APP, subjects.SUBMITTED, "s1", 0).removesuffix("0") + "*"
    before = len(one.messages(entries))
    for n in range(40):
        run = submit(one, id=f"call {n}")
        assert one.run(run.result("1s")).data == {"reply": "re: hi"}
        one.advance(0.001)
    assert len(one.messages(entries)) - before >= 40
    one.advance(1)
    assert len(one.messages(entries)) - before <= 56  # each of the eight partitions closes in one entry what came in 50 ms


def test_who_comes_later_finds_the_answer_where_only_its_user_reads(lab: MakeLab) -> None:
    one = made(lab)
    one.work()
    id = submit(one).id
    one.advance(30.0)
    bus = Looking(one.server, BusEvents())
    result: Result[Any] = one.run(Client(bus=bus, app=APP).run(id).result("1m"))
    assert (result.data, result.attempts) == ({"reply": "re: hi"}, 1)
    pool, _, call = id.partition("/")
    assert bus.looked == [subjects.answer(APP, pool, "_INBOX", call)]


def test_a_message_to_who_waits_that_is_lost_costs_a_second(lab: MakeLab) -> None:
    one = made(lab)
    one.work()
    run = one.run(Client(bus=Deaf(one.server, BusEvents()), app=APP).submit("text -> reply", {"text": "hi"}))
    began = one.loop.time()
    assert one.run(run.result("1m")).data == {"reply": "re: hi"}
    assert one.loop.time() - began < 1.1


def test_the_answer_of_a_worker_that_died_is_told_by_the_next_which_asks_nobody(lab: MakeLab) -> None:
    one = made(lab)
    run = submit(one)
    first = Dying(one.server, BusEvents())
    one.answers[NODE] = lambda inputs, request: {"reply": f"answer {len(one.asked)}"}
    one.work(bus=first)
    one.kill_workers()
    one.work()
    assert one.run(run.result("10m")).data == {"reply": "answer 1"}
    assert len(one.asked) == 1
    records = one.messages(subjects.record(APP, "*", subjects.SUBMITTED, "*", "*"))
    assert len(records) == 1
    assert one.differences() == []


def test_an_error_is_told_as_soon_as_the_engine_has_given_up(lab: MakeLab) -> None:
    one = made(lab)
    one.work()

    def fails(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
        raise ProgramError("a bug")

    one.answers[NODE] = fails
    run, began = submit(one), one.loop.time()
    with pytest.raises(ProgramError, match="a bug"):
        one.run(run.result("1m"))
    assert one.loop.time() - began < 0.2
    with pytest.raises(ProgramError, match="a bug"):
        one.run(one.client.run(run.id).result("1m"))


def test_calls_without_a_session_wait_for_no_other_call(lab: MakeLab) -> None:
    """Nobody answers the first ones, of which each partition has some."""
    one = lab(Submits("lightweight", "gpu"))
    one.start()
    one.work()
    one.answers[NODE] = lambda inputs, request: {"reply": inputs["text"]} if inputs["text"] == "good" else fail()

    def fail() -> dict[str, Any]:
        raise ProgramError("a bug")

    for n in range(40):
        submit(one, dspex.predict("text -> reply", pool="gpu"), id=f"waits {n}")
    good, bad = [[submit(one, text=text, id=f"{text} {n}") for n in range(8)] for text in ("good", "bad")]
    for run in bad:
        with pytest.raises(ProgramError, match="a bug"):
            one.run(run.result("10s"))
    assert [one.run(run.wait("10s")).status for run in good] == ["done"] * 8
    assert one.differences() == []


def test_an_id_of_one_user_is_not_that_of_another_and_a_kind_has_its_own(lab: MakeLab) -> None:
    one = made(lab)
    one.work()
    plain, thought = submit(one, id="a"), submit(one, dspex.chain_of_thought("text -> reply"), id="a")
    stranger = one.run(Client(bus=Bob(one.server, BusEvents()), app=APP).submit("text -> reply", {"text": "hi"}, id="a"))
    one.loop.settle()
    assert not any(run.duplicate for run in (plain, thought, stranger))
    assert len({run.id for run in (plain, thought, stranger)}) == 3
    with pytest.raises(CallTimeout):  # who knows its name does not find it
        one.run(Client(bus=Bob(one.server, BusEvents()), app=APP).run(plain.id).result("20s"))
    assert one.run(stranger.result("1m")).data == {"reply": "re: hi"}


def test_what_no_worker_wrote_is_no_answer(lab: MakeLab) -> None:
    one = made(lab)
    run = submit(one)
    pool, _, call = run.id.partition("/")
    for body in (b"", b"\xc1", codecs.msgpack_bytes({"call": "x"}), CallRecord("x", 1, 1, "", "").pack()):
        one.store(NewMessage(subjects.answer(APP, pool, "_INBOX", call), body))
        one.run(one.client.bus.send(subjects.notice(APP, pool, "_INBOX", one.client._submitted.client, call), body))
    with pytest.raises(CallTimeout):
        one.run(run.result("20s"))
    one.work()
    assert one.run(run.result("1m")).data == {"reply": "re: hi"}


def test_a_submitted_run_is_followed_as_any_other_by_the_id_that_it_had(lab: MakeLab) -> None:
    one = made(lab)
    one.work()
    run = submit(one)
    later = one.client.run(run.id)
    assert one.run(run.result("1m")).id == one.run(later.result("1m")).id
    infos = [one.run(later.wait("1m")), one.run(run.info())]
    assert [(info.topology, info.status, info.calls) for info in infos] == [(subjects.SUBMITTED, "done", 1)] * 2
    full = one.client.run(infos[0].id)
    assert one.run(full.result("1m")).data == one.run(run.result("1m")).data
    with pytest.raises(RunNotFound):
        one.run(one.client.run("lightweight/none").info())


def test_who_waits_for_ever_for_what_was_never_submitted_is_told_so(lab: MakeLab) -> None:
    one = made(lab)
    with pytest.raises(RunNotFound, match="no submitted call lightweight/none is stored"):
        one.run(one.client.run("lightweight/none").result())
    run = submit(one)
    one.kill()
    waits = one.loop.create_task(one.client.run(run.id).result())
    one.loop.advance(60.0)
    assert not waits.done(), "it is stored, and will be answered"
    one.start("b")
    one.work()
    assert one.run(waits).data == {"reply": "re: hi"}


def test_it_survives_the_death_of_engine_and_worker(lab: MakeLab) -> None:
    one = made(lab)
    runs = [submit(one, text=str(n)) for n in range(5)]
    one.kill()
    one.start("b")
    one.kill("b")
    one.work()
    one.start("c")
    results = [one.run(run.result("10m")).data["reply"] for run in runs]
    assert results == [f"re: {n}" for n in range(5)]
    assert len({asked.call for asked in one.asked}) == 5


def test_the_same_id_twice_is_one_call_also_when_the_server_has_forgotten_it(lab: MakeLab) -> None:
    one = made(lab)
    one.work()
    first, at_once = submit(one, id="order-1"), submit(one, id="order-1")
    one.run(first.result("1m"))
    one.advance(600)  # longer than a server knows ids
    later = submit(one, id="order-1", text="something else")
    assert (first.duplicate, at_once.duplicate, later.duplicate) == (False, True, True)
    assert one.run(later.result("1m")).data == one.run(at_once.result("1m")).data == {"reply": "re: hi"}
    assert len(one.asked) == 1
    assert submit(one, id="order-2").duplicate is False


def test_it_is_tried_again_as_its_spec_says_and_its_error_is_the_calls_own(lab: MakeLab) -> None:
    one = made(lab)
    one.work()
    tries: list[int] = []

    def fails(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
        tries.append(request.try_number)
        if len(tries) < 3:
            raise LMUnavailable("down")
        raise ProgramError("a bug")

    one.answers[NODE] = fails
    run = submit(one, dspex.predict("text -> reply", retry=Retry(attempts=2, backoff="1s"), priority=0))
    with pytest.raises(ProgramError, match="a bug"):
        one.run(run.result("10m"))
    assert tries == [1, 2, 3]
    assert [letter.node for letter in one.letters()] == [NODE]


def test_a_call_that_nobody_answers_ends_at_its_deadline(lab: MakeLab) -> None:
    one = made(lab)
    run = submit(one, dspex.predict("text -> reply", deadline="30s"))
    with pytest.raises(CallTimeout, match="has no answer after"):
        one.run(run.result("5s"))
    one.advance(60)
    with pytest.raises(dspex.errors.RunFailed):
        one.run(run.result("1m"))


def test_what_cannot_be_submitted_says_so(lab: MakeLab) -> None:
    one = lab()
    with pytest.raises(NotStored, match="nothing takes submitted calls") as e:
        one.run(one.client.submit("text -> reply", {"text": "x"}))
    assert "engine.submit" in e.value.fix
    one = made(lab)
    with pytest.raises(ConfigError, match="fallback") as refused:
        one.run(one.client.submit(dspex.predict("text -> reply", fallback={"reply": ""}), {"text": "x"}))
    assert refused.value.code == "DX108"


def event(one: Lab, **changes: Any) -> bytes:
    """What a client would submit, but for these changes."""
    submit(one)
    (stored,) = one.messages(subjects.submit_pattern(APP))
    return codecs.msgpack_bytes(codecs.decode(stored.data, codecs.MSGPACK) | changes)


FORGED = subjects.submit(APP, "lightweight", "predict", "_INBOX", "forged")


@pytest.mark.parametrize("change", CHANGES)
def test_an_event_that_is_no_submitted_call_or_not_of_its_subject_is_a_dead_letter_which_who_waits_is_told(
    lab: MakeLab, change: dict[str, Any]
) -> None:
    """The server lets a caller use some subjects: what is asked must be what they say."""
    one = made(lab)
    one.work("lightweight", "other")
    one.store(NewMessage(FORGED, event(one, **change), {subjects.CONTENT_TYPE: codecs.MSGPACK}))
    with pytest.raises((DecodeError, NotAllowed)):
        one.run(one.client.run("lightweight/forged").result())
    assert len(one.asked) == 1
    assert [letter.node for letter in one.letters()] == [NODE]
    assert one.differences() == []


@pytest.mark.parametrize(("kind", "body"), [("application/new", b""), (codecs.MSGPACK, b"\xc1"), (codecs.MSGPACK, b"\x90")])
def test_who_waits_for_what_no_engine_can_read_is_told_so_also_when_its_letter_is_redriven_or_dropped(
    lab: MakeLab, kind: str, body: bytes
) -> None:
    """As of a newer client."""
    one = made(lab)
    one.store(NewMessage(FORGED, body, {subjects.CONTENT_TYPE: kind}))
    for _ in range(2):
        with pytest.raises(DecodeError):
            one.run(one.client.run("lightweight/forged").result())
        (letter,) = one.letters()
        assert one.run(one.client.redrive([letter])) == 1
        one.advance(1.0)
    (letter,) = one.letters()
    assert one.run(letters.drop(one.client.bus, APP, [letter.sequence])) == 1
    assert one.letters() == []
    with pytest.raises(DecodeError):
        one.run(one.client.run("lightweight/forged").result())
