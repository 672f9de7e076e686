"""Agents and programs in a process that is killed go on where they were, in another one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from pool_bench import APP, POOL, Bench, config, running, work
from waiting import until

from dspex.bus import subjects
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.journal.entries import JournalPart

AGENTS, STEPS = 3, 7  # an agent asks once for each step, and once for what it has found: eight requests
AGENT = CallSpec("react", "text -> reply", "text -> reply", tools=("journaled:step",), max_iters=STEPS)
WIDE = CallSpec("program", "journaled:Wide", "text -> reply")  # sixteen requests side by side


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mortal(shared_model: Any) -> AsyncIterator[Bench]:
    """With agents, and programs of DSPy."""
    async with running(config(shared_model.url, restart_max=1000)) as found:
        yield found


async def _answered(bench: Bench, item: CallRequest, count: int) -> bool:
    """Whether so many answers of a call are stored."""
    subject = subjects.request(APP, POOL, item.call)
    found = await bench.bus.scan(subjects.requests(APP), [subject], start=1, stop=10_000)
    return sum(len(JournalPart.unpack(message.data).entries) for message in found) == count


@pytest.mark.long
@pytest.mark.asyncio(loop_scope="module")
async def test_after_a_kill_only_the_requests_that_were_open_are_made_again(mortal: Bench, shared_model: Any) -> None:
    model, before = shared_model, shared_model.requests
    model.answers = {"next_tool_name": "step", "next_tool_args": {"text": "on"}}
    items = [*(work(f"agent {n}", spec=AGENT, opened=1.0) for n in range(AGENTS)), work("wide", spec=WIDE, opened=1.0)]
    for item in items[:AGENTS]:
        model.fault(item.inputs["text"], "hang@5")
    model.fault("wide 3", "hangx2")
    asked = asyncio.create_task(mortal.ask(*items))
    await until(lambda: model.running == AGENTS + 2 and model.requests - before == AGENTS * 5 + 16)
    await until(lambda: _answered(mortal, items[-1], 14))  # an agent asks only when its last answer is stored
    child = mortal.pool.children.children[0]
    os.kill(child.pid, signal.SIGKILL)
    lost = await asked
    assert {record.error and record.error["type"] for record in lost} == {"WorkerLost"}
    assert all(record.usage["input_tokens"] > 0 for record in lost)  # nobody else would count what was paid
    again = [replace(i, try_number=2, attempt=2, record=i.record and i.record._replace(id=f"{i.call}.2")) for i in items]
    done = await mortal.ask(*again)
    assert [record.error for record in done] == [None] * len(items)
    assert model.requests - before == AGENTS * (STEPS + 1) + 16 + AGENTS + 2
    assert [record.requests for record in done[:AGENTS]] == [{"made": 4 + 3, "journal": 4 + 4, "missed": 0}] * AGENTS
    assert done[-1].requests == {"made": 2, "journal": 14, "missed": 0}


@pytest.mark.long
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("by", ["the same request", "a later one", "a purge"])
async def test_an_attempt_whose_journal_is_anothers_or_gone_leaves_no_record(mortal: Bench, shared_model: Any, by: str) -> None:
    """Who was frozen and wakes up when somebody else has taken its call over ends. It acks only what nobody needs any more:
    what was purged may have been somebody's mistake, and the call comes again.
    """
    item, pool, later = work(f"outdone by {by}", spec=AGENT, opened=1.0), mortal.pool, by == "a later one"
    shared_model.answers = {"next_tool_name": "step", "next_tool_args": {}}
    shared_model.fault(item.inputs["text"], "gate@3")
    shared_model.gate.clear()
    await until(lambda: not pool.work.calls)  # those of the tests before are counted
    asked, served, seen = shared_model.requests, pool.work.served, len(mortal.seen)
    await mortal.put(item)
    await until(lambda: shared_model.requests == asked + 3)
    stream, subject = subjects.requests(APP), subjects.request(APP, POOL, item.call)
    last = await mortal.bus.last(stream, subject)
    assert last is not None
    mine = JournalPart.unpack(last.data)
    claim = replace(mine, attempt="another", work=mine.work + later, entries=())
    if by == "a purge":
        await mortal.bus.purge(stream, subject, below=last.sequence + 1)
    else:
        await mortal.bus.publish(NewMessage(subject, claim.pack(), expect=last.sequence))
    shared_model.gate.set()
    await until(lambda: pool.children.slots.busy == 0)
    await until(lambda: pool.work.served == served + later)
    await until(lambda: not pool.work.calls)
    assert (shared_model.requests, len(mortal.seen)) == (asked + 3, seen)
