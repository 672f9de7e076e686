"""A topology with all that has state and time, live through deaths, and then replayed: it must give what the sinks got.

Windows, sessions, a join, gather, calls that are tried again, decisions of people and dead letters; engines and workers are
killed, the server dies and comes back, and a third engine comes and leaves, so that partitions change their owners. Then all
engines end, and what they did is replayed: by the command, by partition from the begin of each log and from each kept snapshot,
and run by run, and nobody asks the model anything.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from oracle import Report, Violation
from standin import StandIn

from dspex import Retry, Topology
from dspex.bus import subjects
from dspex.bus.errors import DspexError
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.serving import payloads
from dspex.engine.client.client import Client
from dspex.engine.client.runs.history import History, history
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.entries import LogAddress, bases
from dspex.engine.log.latest import latest
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.replay.topology import replayed_run
from dspex.engine.runtime.walk.compile import compile_graph
from dspex.operators.stream import gather
from processes.processes import drain_engine, kill_engine, kill_worker
from processes.world import APP, World, insist, profile

NAME, ASKED = "replays", "replays.asked"
WINDOWS, SESSIONS, MET, PAIRS, DECIDED = (f"replays.{what}" for what in ("windows", "sessions", "met", "pairs", "decided"))
SINKS = (WINDOWS, SESSIONS, MET, PAIRS, DECIDED)
KEYS, EACH = 12, 6  # of the events of a key, one in so many waits for a person; one is poison; one fails once at the model


def check(data: dict[str, Any]) -> dict[str, Any]:
    """Poison is found here."""
    if data["n"] % EACH == 1:
        raise ValueError("poison")
    return data


def build() -> Topology:
    """The topology."""
    t, retry = Topology(NAME), Retry(attempts=20, backoff="100ms", factor=1.5, cap="1s")
    keyed = t.source(ASKED, partitions=2, idle="1s").map(check).key_by("key", name="by_key")
    asked = keyed.predict("text -> label: str", name="label", retry=retry, deadline="30m")
    shouted = keyed.map(lambda data: {"shouted": data["text"].upper()}, name="shout")
    gather(keyed, shouted, asked, name="met", within="10m").sink(MET)
    keyed.join(asked, within="2s", name="pairs").map(lambda pair: {"key": pair[0]["key"], "n": [d["n"] for d in pair]}).sink(
        PAIRS
    )
    asked.window("3s", lateness="1s").count(name="windows").sink(WINDOWS)
    keyed.session_window("2s", lateness="1s").count(name="sessions").sink(SESSIONS)
    people, _ = keyed.branch(f"n % {EACH} == 2")
    people.approve(name="people").sink(DECIDED)
    return t


topology = build()


class ReplaysWorld(World):
    """Runs the topology of this file."""

    def add_engine(self) -> None:
        command = [sys.executable, "-m", "dspex", "--json", "-v", "run", "processes.replaying:topology", "--pools", "none"]
        number = sum(p.name.startswith("engine") for p in self.processes)
        self._add(f"engine-{number}", [*command, "--no-server"])


# -- live ----------------------------------------------------------------------------------------------------------------
def event(number: int) -> dict[str, Any]:
    """An event by its number."""
    n, key = divmod(number, KEYS)
    fault = " standin:500x1" if n % EACH == 3 else ""
    return {"key": f"k{key}", "n": n, "text": f"message {number}{fault}"}


async def _publish(world: World, events: int, pace: float) -> None:
    while await insist(lambda: world.bus.stream(subjects.sources(APP))) is None:
        await asyncio.sleep(0.2)
    for number in range(events):
        headers = {subjects.MESSAGE_ID: f"event {number}", subjects.KEY: event(number)["key"]}
        draft = NewMessage(ASKED, json.dumps(event(number)).encode(), headers)
        await insist(lambda d=draft: world.bus.publish(d))
        await asyncio.sleep(pace)


async def _decide(world: World) -> None:
    """Accept every second one, and reject the others, until somebody ends this."""
    client = Client(bus=world.bus, app=APP)
    while True:
        with suppress(DspexError):  # the server is away, or it was decided about
            async for waiting in client.approvals():
                decision = "accept" if waiting.shown["n"] // EACH % 2 else "reject"
                await client.decide(waiting, decision)  # type: ignore[arg-type]
        await asyncio.sleep(0.5)


async def _trouble(world: World, kills: int, seconds: float, random: Random) -> None:
    """Spread over so many seconds: engines and workers die, the server does, and a third engine comes and goes."""
    plan = ["kill-engine", "kill-worker", "kill-server", "come-and-go"] * kills
    random.shuffle(plan)
    for what in plan:
        await asyncio.sleep(seconds / len(plan))
        match what:
            case "kill-engine":
                await kill_engine(world, random)
            case "kill-worker":
                await kill_worker(world, random)
            case "kill-server":
                await world.restart_server()
            case _:
                world.add_engine()
                await asyncio.sleep(2.0)
                await drain_engine(world, random)
        world.done[what] += 1


def wanted(events: int) -> dict[str, int]:
    """How many of each must come: a count says how many events are in all windows."""
    good = [e for e in map(event, range(events)) if e["n"] % EACH != 1]
    people = [e for e in good if e["n"] % EACH == 2]
    accepted = sum(e["n"] // EACH % 2 for e in people)
    return {
        MET: len(good), WINDOWS: len(good), SESSIONS: len(good), DECIDED: accepted,
        "letters": events - len(good) + len(people) - accepted,
    }  # fmt: skip


def counted(stored: list[Message]) -> dict[str, int]:
    """The same, of what is stored."""
    found = Counter[str]()
    for message in stored:
        letter = subjects.matches(subjects.dead_pattern(APP), message.subject)
        windows = message.subject in (WINDOWS, SESSIONS)
        found["letters" if letter else message.subject] += json.loads(message.data)["value"] if windows else 1
    return {name: found[name] for name in (MET, WINDOWS, SESSIONS, DECIDED, "letters")}


async def _stored(world: World) -> list[Message]:
    """What came out: of sinks, and dead letters."""
    stream = subjects.stream(APP)
    info = await insist(lambda: world.bus.stream(stream))
    filters = [*SINKS, subjects.dead_pattern(APP)]
    found = await insist(lambda: world.bus.scan(stream, filters, start=1, stop=info.last if info is not None else 0))
    return [await payloads.required(world.bus, APP, message) for message in found]


# -- again ---------------------------------------------------------------------------------------------------------------
class Collecting(PartitionReplay):
    """A replay that keeps what comes out. `made`: of sinks, and dead letters: subject, id of the event, body."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.made = Counter[tuple[str, str, bytes]]()

    async def _entry(self, sequence: int, entry: Mapping[str, Any], changed: Mapping[str, Any]) -> AsyncIterator[str]:
        async for what in super()._entry(sequence, entry, changed):
            yield what
        self.made.update(_outcomes(self._batch.messages))


def _outcomes(messages: Any) -> list[tuple[str, str, bytes]]:
    dead = subjects.dead_pattern(APP)
    some = [m for m in messages if m.subject in SINKS or subjects.matches(dead, m.subject)]
    return [(m.subject, (m.headers or {}).get(subjects.EVENT_ID, ""), m.data) for m in some]


async def _by_partition(world: World, applied: Manifest, stored: list[Message]) -> tuple[list[Violation], dict[str, int]]:
    """Replay each partition from its begin, and from each snapshot that is kept."""
    wrong, made, numbers = list[Violation](), Counter[tuple[str, str, bytes]](), Counter[str]()
    graph = topology.graph
    for stage, count in compile_graph(graph, applied.stages, applied.hops, applied.renamed):
        stream = applied.streams[stage.name] if stage.source is not None else ""
        for index in range(count):
            end = await latest(world.bus, LogAddress.of(APP, graph.name, stage.id, index))
            if not end.at:
                continue
            for snapshot in (0, *sorted({*bases(end.at, end.entry)} - {0})):
                replay = Collecting(world.bus, APP, stage, stream, index, count, payloads.most(world.bus))
                async for found in replay.differences(snapshot):
                    where = f"{stage.id}.{index}@{found.entry} from {snapshot}, excused: {replay.excused}"
                    wrong.append(Violation("a replay of a partition gives the same", f"{where}: {found.what}"))
                if not snapshot:
                    made += replay.made
                    numbers.update({f"{input} taken again": count for input, count in replay.taken.items()})
                numbers["from snapshots" if snapshot else "partitions"] += 1
    if made != (sunk := Counter(_outcomes(stored))):
        less, more = list((sunk - made).items())[:3], list((made - sunk).items())[:3]
        wrong.append(Violation("replay's outputs are what the sinks got", f"not made again: {less}; made: {more}"))
    return wrong, dict(numbers)


async def _by_run(world: World, applied: dict[str, Manifest], runs: list[str]) -> list[Violation]:
    """Replay each run by itself."""
    wrong = list[Violation]()
    for run in runs:
        past = await history(world.bus, APP, applied, run)
        found = await replayed_run(world.bus, APP, topology.graph, applied[NAME], {}, _taken(past), run)
        if not past.done:
            wrong.append(Violation("a run comes to its end", run))
        wrong += [Violation("a replay of a run gives the same", f"{run}: {one}") for one in found.diverged]
    return wrong


def _taken(past: History) -> dict[tuple[str, int], set[int]]:
    found: dict[tuple[str, int], set[int]] = {}
    for one in past.taken:
        found.setdefault(one.partition[1:], set()).add(one.sequence)
    return found


async def _by_command(world: World) -> list[Violation]:
    """`dspex replay --topology`, as a user calls it."""
    command = [sys.executable, "-m", "dspex", "--json", "replay", "--topology", NAME, "--with", "processes.replaying:topology"]
    env = next(p.env for p in world.processes)
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, cwd=world.folder, env=env, **pipes)  # type: ignore[arg-type]
    out, err = await process.communicate()
    good = process.returncode == 0 and json.loads(out)["same"]
    return [] if good else [Violation("dspex replay says: same", f"{process.returncode}: {out[-600:]!r} {err[-600:]!r}")]


# -- all of it -----------------------------------------------------------------------------------------------------------
async def _run(world: World, model: StandIn, events: int, kills: int, pace: float, seed: int, patience: float) -> Report:
    began = time.monotonic()
    tasks = [asyncio.create_task(_publish(world, events, pace)), asyncio.create_task(_decide(world))]
    tasks.append(asyncio.create_task(_trouble(world, kills, max(events * pace, 8.0), Random(seed))))
    wrong, stored = list[Violation](), list[Message]()
    try:
        async with asyncio.timeout(patience):
            await asyncio.gather(tasks[0], tasks[2])
            while counted(stored := await _stored(world)) != wanted(events):
                await asyncio.sleep(0.5)
    except TimeoutError:
        wrong.append(Violation("all comes out", f"{counted(stored)}, not {wanted(events)}"))
    for task in tasks:
        task.cancel()
    await world.drain(40.0)
    took, again, asked = time.monotonic() - began, time.monotonic(), model.stats()["requests"]
    applied = await Client(bus=world.bus, app=APP).manifests()
    runs = [info.id async for info in Client(bus=world.bus, app=APP).runs(limit=events + 1)]
    differ, numbers = await _by_partition(world, applied[NAME], await _stored(world))
    wrong += [*differ, *await _by_run(world, applied, runs), *await _by_command(world)]
    if (more := model.stats()["requests"] - asked) or not asked:
        wrong.append(Violation("a replay asks no model", f"{asked} requests live, and {more} more"))
    if len(runs) != events:
        wrong.append(Violation("each event is a run", f"{len(runs)} of {events}"))
    wanted_faults = dict.fromkeys(("kill-engine", "kill-worker", "kill-server", "come-and-go"), kills)
    if dict(world.done) != wanted_faults:
        wrong.append(Violation("every fault happens", f"{dict(world.done)}, not {wanted_faults}"))
    said = {"events": events, "seconds": round(took, 1), "replayed in": round(time.monotonic() - again, 1), "seed": seed}
    said |= {"faults": dict(world.done), "outcomes": counted(stored), "pairs": sum(m.subject == PAIRS for m in stored)}
    return Report({**said, **numbers}, wrong + [Violation("processes live and drain", p) for p in world.problems])


async def judged(
    events: int = 600, kills: int = 4, pace: float = 0.2, seed: int = 31, patience: float = 600.0, engines: int = 2
) -> Report:
    """A run with so many events, and so many faults of each kind."""
    with tempfile.TemporaryDirectory(prefix="dspex-chaos-") as folder:
        async with StandIn(latency=0.05) as model:
            lm = profile(model="openai/stand-in", base_url=model.url, key_env="OPENAI_API_KEY")
            async with ReplaysWorld(Path(folder), lm, engines=engines, size=1) as world:
                return await _run(world, model, events, kills, pace, seed, patience)
