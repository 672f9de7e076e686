"""The backlog of a pool is a number that KEDA's `nats-jetstream` scaler reads, on the server's monitoring port."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from dspex.bus import nats, subjects
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.serving.work_consumers import WorkConsumers

PAGE = Path(__file__).parents[3] / "docs/guides/pools.md"
POOL = "lightweight"


def lag(monitor: str, account: str, stream: str, consumer: str) -> int:
    """As the scaler computes it."""
    with urllib.request.urlopen(f"{monitor}/jsz?acc={account}&consumers=true&config=true", timeout=10) as answer:
        said = json.load(answer)
    streams = next(one for one in said["account_details"] if one["name"] == account)["stream_detail"]
    consumers = next(one for one in streams if one["name"] == stream)["consumer_detail"]
    (found,) = [one for one in consumers if one["name"] == consumer]
    return int(found["num_pending"] + found["num_ack_pending"])


@pytest.mark.asyncio
async def test_keda_reads_the_calls_that_wait_and_those_that_run_by_the_names_of_the_page(
    nats_server: Any, unique: str
) -> None:
    page = dict(re.findall(r'^ +(account|stream|consumer): "(\S+)"', PAGE.read_text(), re.M))
    assert page == {"account": "$G", "stream": subjects.stream("bank-support"), "consumer": subjects.work_consumer(POOL, 1)}
    page["stream"] = stream = subjects.stream(unique)
    bus = await nats.connect(nats_server.url)
    try:
        await bus.ensure_stream(StreamConfig(stream, subjects.own_subjects(unique)))
        await WorkConsumers(bus, unique, [(POOL, subjects.band(5))]).look()
        for n in range(5):
            await bus.publish(NewMessage(subjects.work(unique, POOL, "t", "n"), b"%d" % n))
        queue = await bus.work(stream, name=page["consumer"], free=lambda: 1)
        assert queue is not None
        await queue.next()
        assert await asyncio.to_thread(lag, nats_server.monitor, **page) == 5
        assert (await bus.backlog(stream, page["consumer"]) or 0) < 5, "what a process has is none of it"
    finally:
        await bus.close()
