"""What a fork leads to in other runs of an application whose payloads are sealed, and in the object store: on a real server."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import pytest
from sealed_app import CARD, LARGE, Sealed, count, everything, of
from waiting import until

from dspex.bus.records import CallRecord, CallRequest
from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import delivered, forked
from dspex.operators.topology import Topology


class SealedBatches(Sealed):
    """One in which a call is made for two events at a time."""

    def topology(self) -> Topology:
        topology = Topology("asking")
        two = topology.source(f"{self.app}.in").batch(2, within="1h", name="two")
        joined = two.map(lambda of: {"text": " ".join(one["text"] for one in of)}, name="joined")
        joined.predict("text -> answer", name="ask", retry={"attempts": 1}).sink(f"{self.app}.out")
        return topology


@pytest.mark.asyncio
@pytest.mark.parametrize("size", ["", LARGE])
async def test_what_is_sealed_and_what_is_in_the_object_store_is_followed_and_delivered_sealed(
    nats_url: str, unique: str, size: str
) -> None:
    async with AsyncExitStack() as stack:
        app = SealedBatches(nats_url, unique, stack)
        await app.engine()
        await app.worker()
        client, out = await app.client(), f"{app.app}.out"
        runs = [await client.publish(f"{app.app}.in", {"text": f"{CARD} {n}{size}"}, session="s1") for n in range(4)]
        await until(partial(count, partial(of, client, out), 2))
        asked = list[str]()

        async def make(pool: str, request: CallRequest) -> CallRecord:
            asked.append(request.inputs["text"])
            return CallRecord(request.call, 1, 1, "", "", outputs={"answer": f"{CARD} again"})

        info = await runs[0].wait("10s")
        graphs, change = [app.topology().graph], ForkChange(inputs={"text": f"{CARD} other{size}"})
        made = await forked(client, info.id, "two", change, graphs, make=make)
        assert made.later is not None
        assert asked == [f"{CARD} other{size} {CARD} 1{size}"]
        found = {(one.step, one.field): one.b for one in made.later.diffs}
        assert found[out, "answer"] == f"{CARD} again"
        assert made.later.open == ()
        assert await delivered(client, made.run, graphs) == (made.run, 1)
        assert sum(b"again" in data for data in await of(client, out)) == 1
        assert not any(CARD.encode() in m.data for m in await everything(await app.bus(None), app.app))
