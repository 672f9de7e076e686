"""Interactive calls that are given, or give, more than a message holds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pool_bench import APP, ECHO, POOL, config, running, talks
from waiting import until

import dspex
from dspex.bus.errors import OutputTooLarge, PayloadTooLarge
from dspex.bus.memory.handles import MemoryObjects
from dspex.bus.memory.server import MemoryBus
from dspex.bus.port import BusEvents
from dspex.engine.client.client import Client

TEXT = "text -> reply"


@pytest.mark.long
@pytest.mark.asyncio
async def test_an_interactive_call_may_be_given_and_give_more_than_a_message_holds(model: Any) -> None:
    async with running(config(model.url)) as bench:
        await until(lambda: bench.joined)
        client = Client(bus=bench.bus, app=APP)
        for name, text, reply in (("length", "x" * 3_000_000, "3000000"), ("big", "3000000", "x" * 3_000_000)):
            spec = dspex.program(f"sample:{name}", TEXT, pool=POOL)
            assert (await client.call(spec, {"text": text})).data["reply"] == reply
        with pytest.raises(OutputTooLarge, match="one payload may have"):
            await client.call(dspex.program("sample:big", TEXT, pool=POOL), {"text": "68000000"})
        with pytest.raises(PayloadTooLarge, match="one payload may have"):
            await client.call(dspex.program("sample:length", TEXT, pool=POOL), {"text": "x" * 68_000_000})


class _SlowObjects(MemoryBus):
    """A connection over which a body takes three seconds."""

    async def objects(self, name: str, *, replicas: int = 1) -> MemoryObjects:
        await asyncio.sleep(3.0)
        return await super().objects(name, replicas=replicas)


def test_a_large_request_holds_up_no_small_one_behind_it() -> None:
    with talks() as t:
        for pool in t.pools:
            t.run(pool.bus.close())
        t.begin(t.start(_SlowObjects(t.server, BusEvents())))
        large = t.begin(t.client.call(ECHO, {"text": "x" * 3_000_000}))
        began = t.loop.time()
        assert t.run(t.client.call(ECHO, {"text": "small"})).data["reply"] == "small after 0"
        assert t.loop.time() - began < 0.5
        assert not large.done()
        t.loop.advance(10.0)  # its answer is as large
        assert large.result().data["reply"].endswith("x after 0")
