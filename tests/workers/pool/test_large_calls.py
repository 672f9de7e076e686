"""Interactive calls that are given, or give, more than a message holds."""

from __future__ import annotations

from typing import Any

import pytest
from pool_bench import APP, POOL, config, running
from waiting import until

import dspex
from dspex.bus.errors import OutputTooLarge, PayloadTooLarge
from dspex.engine.client.client import Client

TEXT = "text -> reply"


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
