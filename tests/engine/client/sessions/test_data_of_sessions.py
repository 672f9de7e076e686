"""What a session keeps: data that is saved, and turns up to a number and a size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pool_bench import APP, ECHO, Talks, talks

from dspex.bus.errors import InvalidInput, OutputTooLarge, SessionConflict, SessionError, Unreachable, Unsettled
from dspex.bus.memory.server import Faults, MemoryBus
from dspex.bus.port import BusEvents
from dspex.bus.serving.sessions.state import MOST_BYTES, MOST_TURNS, SessionState
from dspex.bus.serving.sessions.store import SessionStore
from dspex.engine.client.client import Client


@pytest.fixture
def t() -> Iterator[Talks]:
    with talks() as one:
        yield one


def test_data_is_saved_by_whoever_knows_the_latest(t: Talks) -> None:
    one, other = t.client.session("c1"), t.another().session("c1")
    assert t.run(one.load()) == ({}, 0)
    first = t.run(one.save({"cart": ["a"]}, 0))
    t.say(one, "between")  # a turn is no change of the data
    data, revision = t.run(other.load())
    assert (data, revision) == ({"cart": ["a"]}, first)
    t.run(other.save({"cart": ["a", "b"]}, revision))
    with pytest.raises(SessionConflict):
        t.run(one.save({"cart": []}, first))
    assert t.run(one.load()) == ({"cart": ["a", "b"]}, 2)


def test_of_two_who_save_the_same_one_is_told_of_the_other(t: Talks) -> None:
    """Both add one to the number that they have loaded: it must not count one."""
    one, other = t.client.session("c1"), t.another().session("c1")
    assert t.run(one.save({"count": 1}, 0)) == 1
    with pytest.raises(SessionConflict):
        t.run(other.save({"count": 1}, 0))
    t.server.luck.faults = Faults(unsettled=0.5)
    for revision in range(1, 9):  # who is not told that it has saved is no other one
        assert t.run(one.save({"count": revision + 1}, revision)) == revision + 1


@pytest.mark.parametrize("data", [["a"], "a", None, {1: "a"}, {None: "a"}])
def test_data_that_nobody_could_read_again_is_refused_and_the_session_goes_on(t: Talks, data: Any) -> None:
    session = t.client.session("c1")
    t.say(session, "a")
    with pytest.raises(InvalidInput, match="the data of session c1 has to be a mapping"):
        t.run(session.save(data, 0))
    assert t.run(session.load()) == ({}, 0)
    assert t.say(session, "b") == "b after 1"


@pytest.mark.parametrize("value", [float("nan"), [1, float("inf")], {"deep": {3: "a"}}], ids=str)
def test_what_json_cannot_say_is_neither_kept_nor_asked_nor_submitted(t: Talks, value: Any) -> None:
    session = t.client.session("c1")
    with pytest.raises(InvalidInput, match=r"the data of session c1 cannot be kept: data\.n"):
        t.run(session.save({"n": value}, 0))
    for ask in (t.client.call, t.client.submit, session.call):
        with pytest.raises(InvalidInput, match=r"inputs\.text"):
            t.run(ask(ECHO, {"text": value}))
        with pytest.raises(InvalidInput, match="inputs has the key 5, which is no text"):
            t.run(ask(ECHO, {"text": "a", 5: "b"}))
    assert t.answering.asked == []


def test_what_is_too_large_is_refused(t: Talks) -> None:
    session = t.client.session("c1")
    with pytest.raises(OutputTooLarge):
        t.run(session.save({"text": "x" * MOST_BYTES}, 0))
    before = len(t.answering.asked)
    with pytest.raises(InvalidInput, match="the inputs of a turn"):
        t.say(session, "x" * MOST_BYTES)
    assert len(t.answering.asked) == before, "nobody is asked, and paid"
    assert t.say(session, "a") == "a after 0"


@pytest.mark.parametrize(("size", "cut"), [(2 * MOST_BYTES, False), (6 * MOST_BYTES, True)])
def test_an_answer_that_is_large_is_given_whole_and_is_kept_whole_as_far_as_one_message_holds_it(
    t: Talks, size: int, cut: bool
) -> None:
    session = t.client.session("c1")
    t.say(session, "before")
    t.answering.replies = {"much": "y" * size}
    assert len(t.say(session, "much", id="q1")) == size
    (turn,) = t.run(_turns(session))
    assert (turn.inputs, turn.cut) == ({"text": "much"}, cut)
    assert (len(turn.outputs["reply"]) == size) is not cut
    assert len(turn.outputs["reply"]) > MOST_BYTES
    if cut:
        assert turn.outputs["reply"].endswith("bytes)")
        with pytest.raises(SessionError, match="too large for its session"):  # nobody is given half of it
            t.say(session, "much", id="q1")
    else:
        assert len(t.say(session, "much", id="q1")) == size
    assert len(t.answering.asked) == 2
    t.say(session, "after")
    assert len(t.answering.asked[-1].inputs["history"]["messages"]) == 1


async def _turns(session: Any) -> list[Any]:
    return [turn async for turn in session.history()]


class _Cut(MemoryBus):
    """A connection that is cut when it has written to a bucket: nobody is told."""

    cut = False

    async def bucket(self, name: str, **options: Any) -> Any:
        return _CutBucket(self, await super().bucket(name, **options))


class _CutBucket:
    def __init__(self, bus: _Cut, bucket: Any) -> None:
        self._bus, self._bucket, self.time = bus, bucket, bucket.time

    async def get(self, key: str) -> Any:
        if self._bus.cut:
            raise Unreachable("the connection was cut")
        return await self._bucket.get(key)

    async def put(self, key: str, value: bytes, **options: Any) -> int:
        await self._bucket.put(key, value, **options)
        self._bus.cut = True
        raise Unsettled("the connection was cut")


def test_who_does_not_know_whether_it_has_saved_saves_the_same_again(t: Talks) -> None:
    bus = _Cut(t.server, BusEvents())
    session, other = Client(bus=bus, app=APP).session("c1"), t.another().session("c1")
    with pytest.raises(Unreachable):
        t.run(session.save({"count": 1}, 0))
    bus.cut = False
    assert t.run(other.load()) == ({"count": 1}, 1)
    with pytest.raises(SessionConflict):
        t.run(other.save({"count": 1}, 0))
    assert t.run(session.save({"count": 1}, 0)) == 1
    with pytest.raises(SessionConflict):
        t.run(session.save({"count": 1}, 0))


def test_the_last_turns_are_kept_up_to_a_number_and_a_size(t: Talks) -> None:
    session = t.client.session("c1")
    t.say(session, "0")
    t.run(SessionStore(t.client.bus, APP).change("c1", _with_turns))
    for n in range(3):
        t.say(session, str(n))
    info = t.run(session.info())
    assert info.turns == MOST_TURNS + 2
    assert len(t.answering.asked[-1].inputs["history"]["messages"]) == MOST_TURNS
    for _ in range(4):
        t.say(session, "x" * (MOST_BYTES // 8))
    assert len(t.texts(session)) < 50 + 4


def _with_turns(state: SessionState | None, now: float) -> SessionState:
    """One more than were there, up to two fewer than are kept."""
    assert state is not None
    turns = [state.turns[0]._replace(call=str(n), id=str(n)) for n in range(MOST_TURNS - 1)]
    return replace(state, turns=turns, count=len(turns))
