"""Submitted calls of a session: turns like any others, one after the other, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_lab import APP, Lab

import dspex
from dspex.bus.errors import CallTimeout, ConfigError, ProgramError, RecordingIncomplete, RunFailed, SessionEnded
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.port import BusEvents, NewMessage
from dspex.bus.serving.sessions.state import InLine, joined, left, used
from dspex.bus.serving.sessions.store import SessionStore
from dspex.engine.again.files import of_files, replayed
from dspex.engine.client.client import Client
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.submitted import NODE, submitted
from dspex.engine.runtime.inputs.records import LATER

MakeLab = Callable[..., Lab]
CHAT = dspex.predict("history: dspy.History, text -> reply", deadline="5m")


class _Dying(MemoryBus):
    """The connection of a worker that dies when it has stored a turn: no record of it is stored, and nobody is told."""

    async def publish_all(self, drafts: Sequence[NewMessage], **options: Any) -> Any:
        if any(".record." in draft.subject for draft in drafts):
            await asyncio.Event().wait()
        return await super().publish_all(drafts, **options)


class _Submits:
    graph: Graph = submitted(APP, ("lightweight",))


class Talk:
    """The session "ann", and another call that may stand in its line."""

    def __init__(self, one: Lab) -> None:
        self.one, self.session = one, one.client.session("ann")
        self._store = SessionStore(one.client.bus, APP)

    def submit(self, text: str, client: Client | None = None, **options: Any) -> dspex.Run:
        found = (client or self.one.client).submit(CHAT, {"text": text}, session="ann", **options)
        run: dspex.Run = self.one.run(found)
        self.one.loop.settle()
        return run

    def result(self, run: dspex.Run, timeout: str = "10m") -> str:
        return str(self.one.run(run.result(timeout)).data["reply"])

    def texts(self) -> list[str]:
        async def read() -> list[str]:
            return [turn.inputs["text"] async for turn in self.session.history()]

        found: list[str] = self.one.run(read())
        return found

    def other(self, policy: Any = "queue") -> None:
        """Another call has the session, or stands in its line, for a minute."""
        place = InLine("other", 0.0, "lightweight")

        def join(state: Any, now: float) -> Any:
            return joined("ann", used("ann", state, now, None), now, place._replace(until=now + 60), policy)

        self.one.run(self._store.change("ann", join))

    def other_leaves(self) -> None:
        self.one.run(self._store.change("ann", lambda state, now: left(used("ann", state, now, None), "other")))


@pytest.fixture
def talk(lab: MakeLab) -> Talk:
    one = lab(_Submits())
    one.start()
    one.answers[NODE] = _after
    return Talk(one)


def _after(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
    return {"reply": f"{inputs['text']} after {len(inputs['history']['messages']) if 'history' in inputs else '?'}"}


def test_submitted_calls_of_a_session_are_its_turns_in_their_order_and_each_sees_those_before(talk: Talk) -> None:
    one = talk.one
    runs = [talk.submit(str(n)) for n in range(6)]
    beside = one.run(one.client.submit("text -> reply", {"text": "beside"}))
    one.work()
    assert [talk.result(run) for run in runs] == [f"{n} after {n}" for n in range(6)]
    assert one.run(beside.result("1m")).data["reply"] == "beside after ?"
    assert talk.texts() == [str(n) for n in range(6)]
    assert {asked.session for asked in one.asked} == {"ann", None}
    said = one.asked[-1].inputs["history"]["messages"] if one.asked[-1].session else None
    assert said is None or said[0] == {"text": "0", "reply": "0 after 0"}
    assert one.differences() == []


def test_the_next_call_of_a_session_is_asked_for_as_soon_as_the_one_before_is_answered(talk: Talk) -> None:
    one = talk.one
    one.work()
    runs = [talk.submit(str(n)) for n in range(8)]
    began = one.loop.time()
    assert talk.result(runs[-1]) == "7 after 7"
    assert one.loop.time() - began < 2 * LATER  # records of no session wait so long for others, each


def test_files_of_submitted_turns_are_replayed_as_they_were_and_not_made_anew_where_the_session_has_ended(
    talk: Talk, tmp_path: Path
) -> None:
    one = talk.one
    one.work()
    runs = [talk.submit(text) for text in "ab"]
    assert [talk.result(run) for run in runs] == ["a after 0", "b after 1"]
    files, graphs = [tmp_path / f"{n}.jsonl" for n in range(2)], [_Submits.graph]
    for run, file in zip(runs, files):
        recorded = one.client.run(one.run(run.info()).id)
        one.run(recorded.wait("20s"))  # the worker tells the answer before the engine has committed its record
        one.run(recorded.export(file))
    found = replayed(graphs, tmp_path, ())
    assert (found.same, found.runs, found.served) == (True, 2, 2), str(found)
    assert talk.texts() == ["a", "b"]
    one.run(talk.session.end())
    with pytest.raises(RecordingIncomplete, match="the session does not have that turn any more"):
        one.run(of_files(one.client, files[1:], graphs, "live"))


def test_the_turns_of_a_session_outlive_engines_and_workers_and_none_is_made_twice(talk: Talk) -> None:
    one = talk.one
    runs = [talk.submit(str(n)) for n in range(4)]
    one.work(bus=_Dying(one.server, BusEvents()))
    one.advance(2.0)
    assert talk.texts() == ["0"]
    one.kill_workers()
    one.kill()
    one.start("b")
    one.work()
    assert [talk.result(run) for run in runs] == [f"{n} after {n}" for n in range(4)]
    assert talk.texts() == ["0", "1", "2", "3"]
    assert len(one.asked) == 4, "the turn of a worker that died is the answer, and no model is asked again"
    assert one.run(runs[0].result()).route == "record"


def test_the_same_id_twice_is_one_call_and_one_turn_whichever_door_it_comes_through(talk: Talk) -> None:
    one = talk.one
    one.work()
    runs = [talk.submit("a", id="q1"), talk.submit("a", id="q1"), talk.submit("b", id="q2")]
    assert [talk.result(run) for run in runs] == ["a after 0", "a after 0", "b after 1"]
    asked = one.run(talk.session.call(CHAT, {"text": "a"}, id="q1"))
    assert (asked.data["reply"], asked.route) == ("a after 0", "record")
    assert (talk.texts(), len(one.asked)) == (["a", "b"], 2)


def test_a_submitted_call_waits_behind_another_one_without_a_slot(talk: Talk) -> None:
    one = talk.one
    talk.other()
    run = talk.submit("a")
    one.work(slots=1)
    one.advance(5.0)
    beside = one.run(one.client.submit("text -> reply", {"text": "beside"}))
    assert one.run(beside.result("5s")).data["reply"] == "beside after ?"
    assert [asked.session for asked in one.asked] == [None]
    talk.other_leaves()
    assert talk.result(run, "5s") == "a after 0"


def test_a_submitted_call_whose_place_is_taken_is_put_off_and_not_lost(talk: Talk) -> None:
    """`policy="interrupt"` ends a call of a client, which raises. Nobody is there to be told of this one."""
    one = talk.one
    texts: list[str] = []

    def interrupted(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
        texts.append(inputs["text"])
        return _after(inputs, request)

    one.answers[NODE] = interrupted
    one.tokens[None] = 3000  # an answer takes its time
    run = talk.submit("a")
    one.work()
    one.advance(0.5)
    talk.other("interrupt")
    one.advance(30.0)
    assert talk.texts() == []
    talk.other_leaves()
    assert talk.result(run) == "a after 0"
    assert (talk.texts(), texts) == (["a"], ["a", "a"])


def test_a_submitted_call_that_fails_is_no_turn_and_the_next_one_goes_on(talk: Talk) -> None:
    one = talk.one

    def fails(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
        if inputs["text"] == "bad":
            raise ProgramError("a bug")
        return _after(inputs, request)

    one.answers[NODE] = fails
    one.work()
    runs = [talk.submit(text) for text in ("a", "bad", "b")]
    assert talk.result(runs[0]) == "a after 0"
    with pytest.raises(ProgramError, match="a bug"):
        talk.result(runs[1])
    assert talk.result(runs[2]) == "b after 1"
    assert one.differences() == []


def test_a_session_that_ends_takes_no_submitted_call_and_those_that_wait_are_told(talk: Talk) -> None:
    one = talk.one
    run = talk.submit("a")
    assert one.run(talk.session.end())
    one.work()
    with pytest.raises(SessionEnded):
        talk.result(run)
    with pytest.raises(SessionEnded):
        talk.submit("b")
    assert one.asked == []


def test_a_submitted_call_for_which_the_session_is_not_free_in_time_says_so(talk: Talk) -> None:
    one = talk.one
    one.work()
    talk.other()
    short = dspex.predict("text -> reply", deadline="20s")
    run = one.run(one.client.submit(short, {"text": "a"}, session="ann"))
    with pytest.raises((CallTimeout, RunFailed), match="deadline"):
        one.run(run.result("1m"))
    assert one.asked == []


def test_a_history_that_is_given_stays_and_its_turn_is_stored_without_it(talk: Talk) -> None:
    one = talk.one
    one.work()
    assert talk.result(talk.submit("a")) == "a after 0"
    given = {"text": "b", "history": {"messages": [{"text": "x", "reply": "y"}] * 3}}
    run = one.run(one.client.submit(CHAT, given, session="ann"))
    assert talk.result(run) == "b after 3"
    assert talk.texts() == ["a", "b"]


def test_what_cannot_be_a_turn_is_refused_before_it_is_stored(talk: Talk) -> None:
    one = talk.one
    slow = dspex.predict("text -> reply", lane="batch", deadline="1d")
    with pytest.raises(ConfigError, match="cannot wait for a batch"):
        one.run(one.client.submit(slow, {"text": "a"}, session="ann"))
    with pytest.raises(dspex.errors.InvalidInput, match="the inputs of a turn"):
        talk.submit("x" * (1 << 19))
    assert one.messages("dspex.lab.submit.>") == []
