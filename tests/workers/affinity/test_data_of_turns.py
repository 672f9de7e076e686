"""What a program keeps in its session: loaded with the turn and saved with it, by a pool with real children."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pool_bench import APP, POOL, Bench, config, running, work

import dspex
from dspex.bus.errors import DspexError, SessionConflict
from dspex.engine.client.calls.events import Progress
from dspex.engine.client.client import Client

REMEMBERS = dspex.program("keeping:remembers", "text -> reply", pool=POOL, cache="1h")
WAITS = dspex.program("keeping:waits", "text -> reply", pool=POOL)
WRONG = dspex.program("keeping:saves_what_cannot_be", "text -> reply", pool=POOL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keeping(shared_model: Any) -> AsyncIterator[Bench]:
    async with running(config(shared_model.url, programs=("keeping:*",))) as found:
        yield found


def session_of(bench: Bench, id: str) -> dspex.Session:
    return Client(bus=bench.bus, app=APP).session(id)


async def say(session: dspex.Session, text: str, **options: Any) -> str:
    return str((await session.call(REMEMBERS, {"text": text}, timeout=60, **options)).data["reply"])


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_program_saves_is_kept_with_its_turn_and_what_one_saves_that_fails_or_dies_is_not(keeping: Bench) -> None:
    session = session_of(keeping, "kept")
    assert await say(session, "a", id="first") == "a"
    for text in ("raises", "dies"):
        with pytest.raises(DspexError):
            await say(session, text)
    assert await session.load() == ({"seen": ["a"]}, 1)
    assert await say(session_of(keeping, "kept"), "b") == "a b", "another client, and a new process"
    assert await say(session, "a", id="first") == "a", "the turn that there is"
    assert await say(session, "a") == "a b a", "no answer of the cache"
    await session.save({"seen": ["from a client"]}, 3)
    assert await say(session, "c") == "from a client c"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_durable_turn_saves_once_however_often_it_is_run(keeping: Bench) -> None:
    session = session_of(keeping, "durable")
    async with session:
        pass
    spec = REMEMBERS.to_call().spec
    for text, call in (("a", "q1"), ("dies", "q2"), ("b", "q2"), ("b", "q2"), ("c", "q3")):
        await keeping.ask(work(text, call=call, session="durable", turn=call, spec=spec))
    records = [record for record in keeping.seen if record.call in ("q1", "q2", "q3")]
    said = [(record.outputs or {}).get("reply") for record in records]
    assert said == ["a", None, "a b", "a b", "a b c"]
    assert [record.route for record in records][3] == "record"
    assert {record.saved for record in records} == {None}, "it is kept in the session alone"
    assert await session.load() == ({"seen": ["a", "b", "c"]}, 3)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_program_that_has_loaded_what_a_client_has_changed_meanwhile_overwrites_nothing(
    keeping: Bench, tmp_path: Path
) -> None:
    session, go = session_of(keeping, "moved"), tmp_path / "go"
    os.mkfifo(go)
    await session.save({"count": 1}, 0)

    async def asked(*meanwhile: int) -> str:
        async with session.stream(WAITS, {"text": str(go)}, timeout=60) as answer:
            async for said in answer.events():
                if isinstance(said, Progress):
                    for revision in meanwhile:
                        await session.save({"count": 7}, revision)
                    await asyncio.to_thread(go.write_bytes, b"go")
            return str((await answer.result()).data["reply"])

    with pytest.raises(SessionConflict, match="revision 2, and not at 1"):
        await asked(1)
    assert await session.load() == ({"count": 7}, 2)
    assert [turn async for turn in session.history()] == []
    assert await asked() == "7"
    assert await session.load() == ({"count": 8}, 3)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("what", ["list", "number", "keys", "large"])
async def test_a_program_is_told_what_no_session_can_keep_and_where_there_is_none(keeping: Bench, what: str) -> None:
    session = session_of(keeping, f"wrong-{what}")
    with pytest.raises(DspexError, match=f"the data of session wrong-{what}"):
        await session.call(WRONG, {"text": what}, timeout=60)
    assert await session.load() == ({}, 0)
    with pytest.raises(DspexError, match="the call is no turn of a session"):
        await Client(bus=keeping.bus, app=APP).call(WRONG, {"text": what}, timeout=60)
