"""Sessions: one call at a time whatever process asks, every turn once, and what is left of them when their time is over."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pool_bench import APP, ECHO, Talks, talks

from dspex.bus import codecs, subjects
from dspex.bus.errors import (
    CallTimeout,
    Cancelled,
    ConfigError,
    NotAllowed,
    ProgramError,
    SessionBusy,
    SessionConflict,
    SessionEnded,
    SessionError,
)
from dspex.bus.memory.server import Faults
from dspex.bus.serving.keys.keyring import Keyring
from dspex.bus.serving.sessions.state import REMEMBERED, Policy
from dspex.bus.serving.sessions.store import SessionStore


@pytest.fixture
def t() -> Iterator[Talks]:
    with talks() as one:
        yield one


def test_each_call_sees_the_turns_before_it_whoever_asked(t: Talks) -> None:
    one, other = t.client.session("c1"), t.another().session("c1")
    assert [t.say(one, "a"), t.say(other, "b"), t.say(one, "c")] == ["a after 0", "b after 1", "c after 2"]
    messages = t.answering.asked[2].inputs["history"]["messages"]
    assert messages == [{"text": "a", "reply": "a after 0"}, {"text": "b", "reply": "b after 1"}]
    assert t.texts(other) == ["a", "b", "c"]


def test_whoever_says_of_which_session_a_call_is_takes_its_next_turn(t: Talks) -> None:
    t.say(t.client.session("c1", ttl="2h"), "a")

    async def streamed() -> str:
        async with t.client.stream(ECHO, {"text": "b"}, session="c1") as answer:
            return str((await answer.result()).data["reply"])

    assert t.run(streamed()) == "b after 1"
    assert t.run(t.client.call(ECHO, {"text": "c"}, session="c1")).data["reply"] == "c after 2"
    assert t.texts(t.client.session("c1")) == ["a", "b", "c"]
    assert (info := t.run(t.client.session("c1").info())) is not None
    assert info.ttl.total_seconds() == 7200, "who only calls changes nothing else of the session"


def test_calls_that_one_process_begins_one_after_the_other_are_turns_in_that_order(t: Talks) -> None:
    """Whatever the server does with their writes, of which only one at a time can land."""
    t.server.luck.faults = Faults(delay=0.05)
    said = [str(n) for n in range(8)]

    async def all_at_once() -> None:
        handles = [t.client.session("c1") for _ in said]
        await asyncio.gather(*(one.call(ECHO, {"text": text}, timeout="5m") for one, text in zip(handles, said)))

    t.run(all_at_once())
    assert t.texts(t.client.session("c1")) == said


def test_a_history_that_is_given_is_not_filled_and_no_other_signature_gets_one(t: Talks) -> None:
    session = t.client.session("c1")
    t.say(session, "a")
    t.run(session.call(ECHO, {"text": "b", "history": {"messages": []}}))
    t.run(session.call("text, history_of: str -> reply", {"text": "c", "history_of": "x"}))
    assert [sorted(asked.inputs) for asked in t.answering.asked[1:]] == [["history", "text"], ["history_of", "text"]]
    assert t.answering.asked[1].inputs["history"] == {"messages": []}


def test_a_turn_has_the_id_of_its_record_and_the_time_of_the_server(t: Talks) -> None:
    session = t.client.session("c1")
    result = t.run(session.call(ECHO, {"text": "a"}))

    async def turns() -> tuple[list[Any], float]:
        return [turn async for turn in session.history()], t.server.now

    (turn,), now = t.run(turns())
    assert (turn.call, turn.inputs, turn.outputs) == (result.id, {"text": "a"}, {"reply": "a after 0"})
    assert abs(turn.time.timestamp() - now) < 1


def test_calls_of_a_session_never_overlap_and_end_in_the_order_in_which_they_came(t: Talks) -> None:
    t.answering.seconds = 3.0
    sessions = [t.another().session("c1") for _ in range(4)]
    tasks = [t.begin(session.call(ECHO, {"text": str(n)}, timeout="1m")) for n, session in enumerate(sessions)]
    assert len(t.answering.asked) == 1
    t.loop.advance(15)
    assert [task.result().data["reply"] for task in tasks] == [f"{n} after {n}" for n in range(4)]


def test_calls_of_a_process_in_a_session_follow_each_other_at_once(t: Talks) -> None:
    """Also where the one before failed, or was given up."""
    t.answering.seconds = 1.0

    async def go() -> float:
        session, began = t.client.session("c1"), asyncio.get_running_loop().time()
        calls = [asyncio.ensure_future(session.call(ECHO, {"text": str(n)}, timeout="1m")) for n in range(10)]
        await asyncio.gather(*calls[:5])
        calls[5].cancel()
        await asyncio.gather(*calls[6:])
        return asyncio.get_running_loop().time() - began

    assert t.run(go()) < 9.1, "nine turns of a second; who looks by itself does so each 250 ms"


def test_a_call_that_fails_is_no_turn_and_the_next_one_goes_on(t: Talks) -> None:
    session = t.client.session("c1")
    t.answering.error = ProgramError("a bug")
    with pytest.raises(ProgramError):
        t.say(session, "a")
    t.answering.error = None
    assert t.say(session, "b") == "b after 0"


def test_a_call_that_is_asked_again_under_its_id_is_one_turn(t: Talks) -> None:
    session = t.client.session("c1")
    first = t.run(session.call(ECHO, {"text": "a"}, id="q1"))
    t.say(session, "b")
    again = t.run(t.another().session("c1").call(ECHO, {"text": "a"}, id="q1"))
    assert (again.data, again.id, again.route) == (first.data, first.id, "record")
    assert len(t.answering.asked) == 2
    assert t.texts(session) == ["a", "b"]


@pytest.mark.parametrize("policy", get_args(Policy))
def test_a_call_that_is_asked_again_while_it_runs_waits_for_its_answer(t: Talks, policy: Policy) -> None:
    t.answering.seconds = 3.0
    first = t.begin(t.client.session("c1").call(ECHO, {"text": "a"}, id="q1"))
    again = t.begin(t.another().session("c1", policy=policy).call(ECHO, {"text": "a"}, id="q1"), 4)
    assert first.result().data == again.result().data
    assert len(t.answering.asked) == 1


def test_a_call_that_is_answered_from_its_turn_ends_no_other(t: Talks) -> None:
    session = t.client.session("c1")
    first = t.run(session.call(ECHO, {"text": "a"}, id="q1"))
    t.answering.seconds = 3.0
    runs = t.begin(session.call(ECHO, {"text": "b"}))
    again = t.run(t.another().session("c1", policy="interrupt").call(ECHO, {"text": "a"}, id="q1"))
    t.loop.advance(5)
    assert (again.data, runs.result().data["reply"]) == (first.data, "b after 1")


# -- policies
def test_reject_raises_where_another_call_runs(t: Talks) -> None:
    t.answering.seconds = 3.0
    first = t.begin(t.client.session("c1").call(ECHO, {"text": "a"}))
    with pytest.raises(SessionBusy) as caught:
        t.say(t.another().session("c1", policy="reject"), "b")
    assert caught.value.retryable
    t.loop.advance(5)
    assert first.done()
    assert t.say(t.client.session("c1", policy="reject"), "c") == "c after 1"


def test_interrupt_ends_the_call_that_runs_and_goes_before_those_that_wait(t: Talks) -> None:
    t.answering.seconds = 3.0
    runs = t.begin(t.client.session("c1").call(ECHO, {"text": "runs"}))
    waits = t.begin(t.another().session("c1").call(ECHO, {"text": "waits"}))
    comes = t.begin(t.another().session("c1", policy="interrupt").call(ECHO, {"text": "comes"}))
    assert isinstance(runs.exception(), Cancelled)
    t.loop.advance(8)
    assert [task.result().data["reply"] for task in (comes, waits)] == ["comes after 0", "waits after 1"]


def test_latest_ends_the_calls_that_wait(t: Talks) -> None:
    t.answering.seconds = 3.0
    runs = t.begin(t.client.session("c1").call(ECHO, {"text": "runs"}))
    waits = t.begin(t.another().session("c1").call(ECHO, {"text": "waits"}))
    comes = t.begin(t.another().session("c1", policy="latest").call(ECHO, {"text": "comes"}), 8)
    assert [task.result().data["reply"] for task in (runs, comes)] == ["runs after 0", "comes after 1"]
    assert isinstance(waits.exception(), Cancelled)


@pytest.mark.parametrize("options", [{"policy": "never"}, {"ttl": 0}, {"ttl": "soon"}], ids=str)
def test_what_a_session_cannot_have_is_refused_at_once(t: Talks, options: Any) -> None:
    with pytest.raises(ConfigError):
        t.client.session("c1", **options)
    for id in ("", "x" * 600, "a\nb"):
        with pytest.raises(ConfigError, match="id"):
            t.client.session(id)


# -- who dies
def test_a_turn_is_stored_though_its_caller_died(t: Talks) -> None:
    t.answering.seconds = 40.0  # longer than a place counts that nobody renews: the pool does
    dying = t.another()
    t.begin(dying.session("c1").call(ECHO, {"text": "a"}))
    t.run(dying.bus.close())
    waits = t.begin(t.client.session("c1").call(ECHO, {"text": "b"}, timeout="5m"), 30)
    assert len(t.answering.asked) == 1
    t.loop.advance(60)
    assert waits.result().data["reply"] == "b after 1"


def test_who_waits_gets_its_turn_though_the_pool_and_the_caller_before_died(t: Talks) -> None:
    t.answering.seconds = 1000.0
    dying = t.another()
    t.begin(dying.session("c1").call(ECHO, {"text": "a"}, timeout="1h"))
    t.run(dying.bus.close())
    t.run(t.pools.pop().bus.close())
    t.answering.seconds = 0.0
    t.run(t.start())
    waits = t.begin(t.client.session("c1").call(ECHO, {"text": "b"}), 10)
    assert not waits.done()
    t.loop.advance(15)
    assert waits.result().data["reply"] == "b after 0"


def test_an_answer_whose_place_another_call_took_is_no_turn(t: Talks) -> None:
    """A pool and its caller that stood still for a while."""
    t.answering.seconds = 3.0
    late = t.begin(t.client.session("c1").call(ECHO, {"text": "late"}))
    store = t.server.buckets[subjects.sessions(APP)]
    value, revision = store["c1"]
    store["c1"] = codecs.msgpack_bytes({**codecs.decode(value, codecs.MSGPACK), "head": _without_line(value)}), revision + 1
    other = t.begin(t.another().session("c1").call(ECHO, {"text": "other"}), 5)
    assert other.result().data["reply"] == "other after 0"
    assert isinstance(late.exception(), SessionConflict)
    assert t.texts(t.client.session("c1")) == ["other"]


def test_an_answer_whose_turn_cannot_be_stored_is_an_error(t: Talks) -> None:
    t.answering.seconds = 3.0
    asked = t.begin(t.client.session("c1").call(ECHO, {"text": "a"}, timeout="20s"))
    t.server.luck.faults = Faults(disconnect=1.0)
    t.loop.advance(30)
    t.server.luck.faults = Faults()
    assert t.texts(t.client.session("c1")) == []
    with pytest.raises(SessionError) as caught:
        asked.result()
    assert caught.value.code == "DX700"


def _without_line(value: bytes) -> dict[str, Any]:
    return {**codecs.decode(value, codecs.MSGPACK)["head"], "line": []}


def test_a_call_that_has_no_more_time_leaves_the_line(t: Talks) -> None:
    t.answering.seconds = 5.0
    first = t.begin(t.client.session("c1").call(ECHO, {"text": "a"}))
    with pytest.raises(CallTimeout, match="c1"):
        t.say(t.another().session("c1"), "b", timeout="1s")
    t.loop.advance(5)
    assert first.done()
    assert t.run(t.client.session("c1").info()).waiting == 0


# -- its end
def test_a_session_that_was_ended_or_whose_time_is_over_takes_nothing_more(t: Talks) -> None:
    session = t.client.session("c1", ttl="1m")
    t.say(session, "a")
    t.loop.advance(55)
    t.say(session, "b")  # it was used
    t.loop.advance(61)
    for use in (session.load, lambda: session.save({}, 0), lambda: session.call(ECHO, {"text": "c"})):
        with pytest.raises(SessionEnded, match="time to live"):
            t.run(use())
    other = t.client.session("c2")
    t.say(other, "a")
    t.run(other.end())
    for use in (other.load, lambda: other.call(ECHO, {"text": "c"}), lambda: other.__aenter__()):
        with pytest.raises(SessionEnded, match="was ended"):
            t.run(use())
    assert t.texts(other) == []


def test_a_session_that_is_ended_while_calls_run_and_wait_gets_no_turn(t: Talks) -> None:
    t.answering.seconds = 3.0
    runs = t.begin(t.client.session("c1").call(ECHO, {"text": "runs"}))
    waits = t.begin(t.another().session("c1").call(ECHO, {"text": "waits"}))
    t.run(t.another().session("c1").end())
    t.loop.advance(5)
    assert [type(task.exception()) for task in (runs, waits)] == [SessionEnded, SessionEnded]


def test_sessions_are_listed_with_what_is_known_of_them(t: Talks) -> None:
    async def ids() -> list[tuple[str, int, bool]]:
        return [(one.id, one.turns, one.ended) async for one in t.client.sessions()]

    assert t.run(ids()) == []
    for id in ("customer 5/ü.x", "b"):
        t.say(t.client.session(id), "a")
    t.run(t.client.session("b").end())
    assert t.run(ids()) == [("b", 1, True), ("customer 5/ü.x", 1, False)]


def test_the_id_of_a_session_that_was_ended_is_free_after_an_hour_however_long_it_could_have_lived(t: Talks) -> None:
    session = t.client.session("c1", ttl="30d")
    t.say(session, "a")
    t.run(session.end())
    t.loop.advance(REMEMBERED - 10)
    with pytest.raises(SessionEnded):
        t.say(session, "b")
    t.loop.advance(20)
    assert t.say(session, "c") == "c after 0"
    assert t.run(session.load()) == ({}, 0)


def test_what_is_stored_and_is_no_session_is_told_and_can_be_ended(t: Talks) -> None:
    session = t.client.session("c1")
    t.say(session, "a")
    t.server.buckets[subjects.sessions(APP)]["c1"] = b"anything", 99
    with pytest.raises(SessionError, match="c1") as caught:
        t.run(session.load())
    assert caught.value.code == "DX705"
    t.run(session.end())
    assert t.run(session.load()) == ({}, 0)


def test_what_is_over_is_removed_once_nobody_has_to_be_told(t: Talks) -> None:
    store = SessionStore(t.client.bus, APP)
    for id, ttl in (("ended", "1m"), ("silent", "1m"), ("used", "3m")):
        t.say(t.client.session(id, ttl=ttl), "a")
    t.run(t.client.session("ended").end())
    for seconds, left in ((0, 3), (61, 2), (61, 1), (60, 1)):
        t.loop.advance(seconds)
        t.run(store.purge())
        assert len(t.run(store.ids())) == left
    assert t.say(t.client.session("ended"), "b") == "b after 0"


def test_what_was_said_is_sealed_and_is_forgotten_with_its_key(t: Talks) -> None:
    keys = {"KEY": secrets.token_hex(32)}
    for bus in (t.client.bus, t.pools[0].bus):
        bus.sealing = Keyring(bus, APP, "KEY", keys)
        t.run(bus.sealing.establish(1))
    session = t.client.session("c1")
    t.say(session, "my card is 4929")
    t.run(session.save({"card": "4929"}, 0))
    (value, _) = t.server.buckets[subjects.sessions(APP)]["c1"]
    assert b"4929" not in value
    assert t.texts(session) == ["my card is 4929"]
    without = t.another().session("c1")
    with pytest.raises(NotAllowed, match="no key"):
        t.run(without.load())
    with pytest.raises(ConfigError, match="sealed"):
        t.run(t.another().session("c2").save({}, 0))
    t.run(t.client.forget(session="c1"))
    assert t.run(session.info()) is None
    t.server.buckets[subjects.sessions(APP)]["c1"] = value, 10_000  # from a backup
    with pytest.raises(SessionEnded):
        t.run(session.load())
