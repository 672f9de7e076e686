"""Interactive calls: which options of a spec bound the call, and which are refused."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from engine_lab import APP, Lab

import dspex
from dspex.bus import errors, subjects
from dspex.bus.errors import CallTimeout, ConfigError
from dspex.bus.memory.server import MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message
from dspex.bus.records import CallRequest
from dspex.bus.serving.sayings import ACCEPTED
from dspex.engine.client.client import Client


async def never_answer(message: Message) -> None:
    """A worker that takes the call and says nothing."""


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("options", "timeout", "bound"),
    [
        ({"timeout": 0.02}, None, "0.02 s"),
        ({"deadline": 0.02}, None, "0.02 s"),
        ({"timeout": 0.02, "deadline": 0.03}, None, "0.02 s"),
        ({"timeout": 0.02}, "40ms", "0.04 s"),
        ({}, 0.02, "0.02 s"),
    ],
)
async def test_a_call_is_bounded_by_its_spec_unless_the_caller_says_otherwise(options: Any, timeout: Any, bound: str) -> None:
    bus = MemoryServer().connect()
    await bus.subscribe(subjects.call_pattern("app", "lightweight"), never_answer)
    async with Client(bus=bus, app="app") as client:
        with pytest.raises(CallTimeout, match=f"within {bound}"):
            await client.call(dspex.predict("text -> lang", **options), {"text": "hi"}, timeout=timeout)


@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.0, 5.0])
def test_the_time_of_a_call_ends_exactly_then_and_leaves_nothing_of_it_in_its_task(seconds: float) -> None:
    async def go() -> tuple[float, int]:
        clock = asyncio.get_running_loop().time
        bus, task = MemoryServer().connect(), asyncio.current_task()

        async def only_accept(message: Message) -> None:
            await bus.send(message.reply, b"", headers={subjects.KIND: ACCEPTED})

        await bus.subscribe(subjects.call_pattern("app", "lightweight"), only_accept)
        async with Client(bus=bus, app="app") as client:
            began = clock()
            with pytest.raises(CallTimeout):
                await client.call("text -> lang", {"text": "hi"}, timeout=seconds)
            assert task is not None
            return clock() - began, task.cancelling()

    loop = VirtualLoop()
    took, left = loop.run(go(), advance=True)
    loop.close()
    assert took == pytest.approx(seconds, abs=0.001)
    assert left == 0


def test_who_cancels_a_call_as_its_time_ends_is_not_told_that_it_was_late() -> None:
    async def go() -> None:
        bus = MemoryServer().connect()
        await bus.subscribe(subjects.call_pattern("app", "lightweight"), never_answer)
        async with Client(bus=bus, app="app") as client:
            call = asyncio.ensure_future(client.call("text -> lang", {"text": "hi"}, timeout=1.0))
            asyncio.get_running_loop().call_later(1.0, call.cancel)
            with pytest.raises(asyncio.CancelledError):
                await call

    loop = VirtualLoop()
    loop.run(go(), advance=True)
    loop.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "options",
    [
        {"retry": {"attempts": 2}},
        {"fallback": {"lang": "en"}},
        {"on_error": "skip"},
        {"order": "key"},
        {"order": "any"},
        {"priority": 0},
    ],
    ids=str,
)
async def test_options_that_only_a_topology_carries_out_are_refused_by_an_interactive_call(options: Any) -> None:
    async with Client(bus=MemoryServer().connect(), app="app") as client:
        with pytest.raises(ConfigError, match=next(iter(options))) as caught:
            await client.call(dspex.predict("text -> lang", **options), {"text": "hi"})
        assert caught.value.code == "DX108"
        assert "leave out" in caught.value.fix


@pytest.mark.parametrize(
    ("what", "subject"),
    [
        ("asking/ask", subjects.call(APP, "gpu", "asking", "ask")),
        ("text -> answer", subjects.ad_hoc_call(APP, "lightweight", "predict")),
        (dspex.predict("text -> answer", pool="gpu"), subjects.ad_hoc_call(APP, "gpu", "predict")),
    ],
    ids=["node", "signature", "spec"],
)
def test_a_deployed_node_is_called_on_a_subject_of_its_own_and_all_else_by_its_kind(lab: Any, what: Any, subject: str) -> None:
    """So that the server can let a caller ask this node and nothing else."""
    topology = dspex.Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", pool="gpu").sink("out")
    one: Lab = lab(topology)
    one.start()
    heard: list[tuple[str, CallRequest]] = []

    async def hear(message: Message) -> None:
        heard.append((message.subject, CallRequest.unpack(message.data)))

    one.run(one.server.connect().subscribe(subject, hear))
    with pytest.raises(CallTimeout):
        one.run(one.client.call(what, {"text": "hi"}, timeout=1.0))
    (found, request) = heard[0]
    assert found == subject == request.called_on(APP, subject.split(".")[3])


def test_no_error_of_a_call_advises_what_only_an_event_has() -> None:
    for error in [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.DspexError)]:
        if issubclass(error, errors.CallError | errors.DataError | errors.RetryLater) and error is not errors.LateEvent:
            fix = error("x").of_call().fix
            assert not re.search("dlq|redrive|event|publish", fix), fix
        assert error("x", fix="its own").of_call().fix == "its own"
