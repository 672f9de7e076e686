"""A child is told to give a call up as it gets it: a program kept its loop meanwhile, or its caller left at once."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from pool_bench import SIGNATURE, config, work

from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.answerers.router import Router
from dspex.workers.child.runner import Runner
from dspex.workers.frames import CallFrame, CancelFrame, DoneFrame, Frame
from dspex.workers.processes.link import Link


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_that_is_given_up_before_it_begins_ends_at_once(shared_model: Any) -> None:
    """It once said nothing, so the parent killed the process after two seconds, with all other calls in it."""
    said = asyncio.Queue[Frame]()
    router = Router(config(shared_model.url).for_child())
    parent = Link(said.put_nowait, lambda wrong: None, together=True)
    child = Link(lambda frame: runner.handle(frame), lambda wrong: None)
    runner = Runner(child, router)
    here, there = socket.socketpair()
    await parent.begin(here)
    await child.begin(there)
    parent.send(CallFrame(1, work(spec=CallSpec("predict", SIGNATURE, SIGNATURE, route="native")).pack()))
    parent.send(CancelFrame(1, over=True))
    async with asyncio.timeout(60):
        done = await said.get()
    assert isinstance(done, DoneFrame)
    assert (done.answer.error or {}).get("type") == "Cancelled"
    parent.close()
    child.close()
    await router.close()
