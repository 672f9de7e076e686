"""An application stream as engines write it: a million messages, and runs in it that are known.

A real engine and a real pool write all of it. Of 20 events, 19 become three rows each; one asks a program for its answer. Each
commit takes two events at most, so that the logs have as many entries as they have where events come one by one, and not a
thousand at a time. `flat` has one partition, so one log has all of its entries; `keyed` has a hop with 64.

At the begin, in the middle and at the end, each topology gets a run that is done and one whose call stays open, as nobody
answers it. Among the first events some end as dead letters.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calling.processes import FOLDER, module, running

import dspex
from dspex.bus import subjects
from dspex.bus.port import NewMessage
from dspex.bus.settings.model import Settings

APP, POOL, NOBODY = "history", "answers", "people"
TOPOLOGIES, PLACES, KINDS = ("flat", "keyed"), ("first", "middle", "last"), ("done", "open")
EACH_COMMIT = 2  # events that one commit takes at most
ASK_EVERY, KEYS, POISONED = 20, 500, 20
CHUNK, AHEAD = 400, 2000  # events that are published at a time, and until one of them is waited for
ROWS, TELL = 3, 50_000  # rows of an event; messages between two words on how far it is


def rows(event: dict[str, Any]) -> list[dict[str, Any]]:
    """What becomes of an event that asks nobody. Raises ValueError for one that is poison."""
    if event["kind"] == "poison":
        raise ValueError("poison")
    return [{**event, "row": row} for row in range(ROWS)]


def topology(name: str) -> dspex.Topology:
    """One of TOPOLOGIES."""
    made = dspex.Topology(name)
    stream: Any = made.source(f"{name}.asked", partitions=1)
    if name == "keyed":
        stream = stream.key_by("key", name="by_key")
    asked, held, plain = stream.branch("kind == 'ask'", "kind == 'hold'")
    asked.program("history.programs:answer", "text -> reply", name="answer", pool=POOL).sink(f"{name}.answers")
    held.program("history.programs:answer", "text -> reply", name="hold", pool=NOBODY, timeout="30d", deadline="30d").sink(
        f"{name}.held"
    )
    plain.flat_map(rows).sink(f"{name}.rows")
    return made


flat, keyed = map(topology, TOPOLOGIES)


def settings(url: str, folder: str) -> Settings:
    """Of the engine, the pool, and who looks."""
    pool = {"programs": ["history.programs:*"], "size": 1, "slots": 64}
    made = {
        "app": APP,
        "path": [str(FOLDER)],
        "server": {"url": url},
        "pools": {POOL: pool, NOBODY: pool},
        "engine": {"commit": {"max_events": EACH_COMMIT}},
        "telemetry": {"log": "error"},
    }
    return Settings.model_validate(made).placed(Path(folder), {})


async def write(url: str, messages: int) -> dict[str, str]:
    """Have an engine write so many messages. Returns the runs that are known: `topology place kind` → full id."""
    with tempfile.TemporaryDirectory() as folder:
        found = settings(url, folder)
        variables = {"DSPEX_SETTINGS_JSON": found.to_json()}
        run = module("dspex", "--json", "run", *(f"history.stored:{name}" for name in TOPOLOGIES))
        run += ["--pools", POOL, "--no-server"]
        async with running(run, variables, ready='"ready"', folder=folder), dspex.connect(settings=found) as client:
            known = dict[str, str]()
            for number, place in enumerate(PLACES):
                known |= await _marked(client, place)
                if place != PLACES[-1]:
                    await _filled(client, messages * (number + 1) // 2, lambda n: poisoned(n) if number == 0 else plain(n))  # noqa: B023
            return known


async def _marked(client: dspex.Client, place: str) -> dict[str, str]:
    """Publish the runs of one place, and wait until they are as they shall be."""
    found = dict[str, str]()
    for topology in TOPOLOGIES:
        done = await client.publish(f"{topology}.asked", {"text": f"the {place}", "kind": "ask", "key": "k1"})
        found[f"{topology} {place} done"] = (await done.wait("10m")).id
        open_ = await client.publish(f"{topology}.asked", {"text": f"the {place}", "kind": "hold", "key": "k1"})
        info = await open_.info()
        while not [step async for step in client.run(info.id).steps()]:
            await asyncio.sleep(0.1)
        found[f"{topology} {place} open"] = info.id
    return found


def plain(number: int) -> dict[str, Any]:
    """An event by its number."""
    kind = "ask" if number % ASK_EVERY == 0 else "rows"
    return {"text": f"event {number} " + "x" * 100, "kind": kind, "key": f"k{number % KEYS}"}


def poisoned(number: int) -> dict[str, Any]:
    """The same, and the first ones are poison."""
    return plain(number) | ({"kind": "poison"} if number % CHUNK < POISONED and number < 2 * CHUNK else {})


async def _filled(client: dspex.Client, messages: int, make: Callable[[int], dict[str, Any]]) -> None:
    """Publish until the application's stream has so many messages."""
    bus, stream, number = client.bus, subjects.stream(APP), 0
    told = await _last(client) // TELL
    while (last := await _last(client)) < messages:
        name = TOPOLOGIES[number // CHUNK % 2]
        if number % AHEAD == 0:  # the engine must not fall far behind
            await (await client.publish(f"{name}.asked", plain(1))).wait("10m")
        events = [make(at) for at in range(number, number + CHUNK)]
        await bus.publish_all([NewMessage(f"{name}.asked", json.dumps(event).encode()) for event in events])
        number += CHUNK
        if last // TELL > told:
            told = last // TELL
            print(f"  {last:>10,} messages in {stream}", file=sys.stderr)


async def _last(client: dspex.Client) -> int:
    info = await client.bus.stream(subjects.stream(APP))
    return info.last if info is not None else 0
