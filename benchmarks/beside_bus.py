"""The engine's CPU time for an event, beside that of the bus alone: reading the same messages and committing the same batches.

The engine takes events from a stream that filled while it stood still. Then a process that has the bus and nothing else reads
that stream and commits what the engine committed: the same bytes under the same headers, in batches of the same size, the next
one read while one is in flight. What it commits is made before the clock runs. Only the CPU time of the process itself counts,
not that of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time

from running import STREAM, SUBJECT, TOPOLOGY, forget, race

from dspex.bus import subjects
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus, connect
from dspex.bus.port import NewMessage, StreamConfig
from dspex.engine.log.entries import readable

TARGET = "BENCH_BUS"
CHUNK = 256  # messages that the engine's pump asks for


async def one_round(url: str, events: int) -> dict[str, float]:
    """Microseconds of CPU an event, of the engine and of the bus alone."""
    done = await race(url, events, processes=1, partitions=1)
    command = [sys.executable, __file__, url, done.app]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit("bench: the bus alone failed")
    await forget(url, done.app)
    return {"engine": done.cpu / events * 1e6, "bus": json.loads(out)["cpu"] / events * 1e6}


async def bus_alone(url: str, app: str) -> float:
    """Seconds of CPU for reading the source and committing what an engine committed."""
    bus = await connect(url)
    batches = [_moved(batch, app) for batch in await _commits(bus, app)]
    await bus.ensure_stream(StreamConfig(TARGET, ["bench.bus.>"]))
    gc.collect()
    gc.freeze()  # what was made before does not count
    began = time.process_time()
    reader = await bus.reader(STREAM, [SUBJECT], after=0, name="bench")
    read, position = 0, 0
    flying: asyncio.Task[int] | None = None
    for *outputs, entry in batches:
        while read < len(outputs):
            read += len(await reader.read(CHUNK))
        read -= len(outputs)
        if flying is not None:
            position = await flying
        flying = asyncio.create_task(bus.commit([*outputs, entry._replace(expect=position)]))
    if flying is not None:
        await flying
    took = time.process_time() - began
    await reader.close()
    await bus.close()
    return took


async def _commits(bus: NatsBus, app: str) -> list[list[Message]]:
    """The messages of each commit, its entry last."""
    info = await bus.stream(subjects.stream(app))
    assert info is not None
    log = subjects.log(app, TOPOLOGY, "s1", 0)
    commits: list[list[Message]] = [[]]
    for message in await bus.scan(info.name, [f"{app}.out", log], start=1, stop=info.last):
        entry = readable(message.data) if message.subject == log else {}
        if entry is None or entry.get("kind") == "claim":
            continue
        commits[-1].append(message)
        if entry:
            commits.append([])
    return [batch for batch in commits if len(batch) > 1]


def _moved(batch: list[Message], app: str) -> list[NewMessage]:
    """The same messages for another stream."""
    *outputs, entry = batch
    drafts = [NewMessage(f"bench.bus.{app}", m.data, _own(m)) for m in outputs]
    return [*drafts, NewMessage(f"bench.bus.{app}.log", entry.data)]


def _own(message: Message) -> dict[str, str]:
    return {name: value for name, value in message.headers.items() if not name.startswith(subjects.FROM_SERVER)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("app")
    given = parser.parse_args()
    print(json.dumps({"cpu": asyncio.run(bus_alone(given.url, given.app))}))
