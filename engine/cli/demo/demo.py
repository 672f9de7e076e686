"""The verb `demo`: sample messages through `support_triage`, on a server, an engine, a worker and a model of its own.

In the middle it kills its engine, and then it redrives a dead letter. In the end it does one of its runs again, and again with
one change. What it prints it reads where any client can: the
sinks, the dead letters and the records of the model's calls, in the order in which they were stored.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from dspex.bus import subjects
from dspex.bus.errors import CallTimeout
from dspex.bus.local.open import connect, server_of
from dspex.bus.message import Message, new_id
from dspex.bus.serving import payloads
from dspex.bus.settings.duration import seconds
from dspex.bus.settings.imports import lean_nats
from dspex.bus.settings.model import LOCAL_MODEL, Settings
from dspex.bus.tasks import Tasks, first
from dspex.engine.cli.demo.engine import EngineProcess
from dspex.engine.cli.demo.printed import Printed
from dspex.engine.cli.demo.rows import DemoRow, figures, readable
from dspex.engine.cli.terminal import log
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import terminal
from dspex.engine.client import letters
from dspex.engine.client.client import Client
from dspex.engine.client.following.naming import full_ids
from dspex.engine.client.letters import DeadLetter
from dspex.engine.client.runs.outputs import read_event
from dspex.engine.client.runs.steps import Step, steps
from dspex.engine.hosting.engine import stop_on_signals
from dspex.engine.hosting.pools import Pools
from dspex.workers.models import weights

APP, SOURCE, POOL = "demo", "support.messages", "lightweight"
SINKS = "support.urgent", "support.triaged"
PROGRAMS = ("dspex.topologies.support_program:Classify",)
RECORDS = subjects.record(APP, "*", "*", "*", "*")  # of calls
GRACE = 5.0  # seconds that engine and pool have to finish what they do


def demo(
    context: typer.Context,
    each: Annotated[int, typer.Option("--each", metavar="N", min=1, max=8, help="The first N messages of each intent.")] = 3,
    timeout: Annotated[str, duration("--timeout", help="Give up after this long.")] = "10m",
) -> None:
    """Triage messages with a language model of this machine, kill the engine meanwhile, and count: no key, no network."""
    t, limit = terminal(context), seconds(timeout)
    weights.require(LOCAL_MODEL)
    level = "debug" if t.verbosity else "error"  # the rows say what went wrong
    log.configure(level, quiet=t.quiet)
    Path(".dspex/demo").mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=".dspex/demo") as store:  # of its own: nothing of an earlier demo is left to do
        found = settings(Path(store), {"local": {"model": LOCAL_MODEL}}, {"url": t.flags.get("server__url")}, level)
        kept = t.run(DemoRun(found, Printed(t), samples(each)).play(limit))
    if not kept:
        raise typer.Exit(1)


def samples(each: int) -> list[dict[str, Any]]:
    """The messages: the first `each` of every intent, and those that have none because nobody can read them. No answer of a
    model has had a say in it.
    """
    text = files("dspex.topologies").joinpath("support_messages.jsonl").read_bytes()
    taken, found = dict[str, int](), list[dict[str, Any]]()
    for message in map(orjson.loads, text.splitlines()):
        intent = message.get("intent")
        taken[intent] = taken.get(intent, 0) + 1
        if intent is None or taken[intent] <= each:
            found.append(message)
    return found


def settings(store: Path, lm: Mapping[str, Any], server: Mapping[str, Any], level: str = "error") -> Settings:
    """Settings of its own, so that the demo is the same in every folder: no file and no variable changes it."""
    demo = {
        "app": APP,
        "server": {**server, "local": {"store": store / "jetstream"}},
        "lm": lm,
        "pools": {POOL: {"size": 1, "slots": 1, "programs": PROGRAMS}},
        "telemetry": {"log": level},
    }
    return Settings.model_validate(demo).placed(Path.cwd(), {"telemetry.log": "flag"})


@dataclass
class DemoRun:
    """One run of the demo. `sample`: messages, with the intent of those that are to be judged."""

    settings: Settings
    printed: Printed
    sample: Sequence[Mapping[str, Any]]
    rows: dict[str, DemoRow] = field(default_factory=dict)  # by run
    calls: dict[str, list[Step]] = field(default_factory=dict)  # by run, as recorded
    wrong: list[DeadLetter] = field(default_factory=list)  # that can be put right
    killed_at: int | None = None  # the last sequence of the stream then
    first: float | None = None  # answer, on the monotonic clock

    async def play(self, limit: float) -> bool:
        """Run it, and print it. Whether all that was promised is so: nothing lost, nothing twice, no call paid twice."""
        self._began = time.monotonic()
        stopped = stop_on_signals()
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(server_of(self.settings, start=True))
            self.printed.server(server)
            tasks = Tasks("demo")
            self.engine = EngineProcess(self.settings, tasks)
            self.pools = Pools([POOL], self.settings, self.printed.pool, grace=GRACE)
            lean_nats()
            bus = await connect(self.settings, server, name="dspex/demo")
            stack.push_async_callback(bus.close)
            stack.push_async_callback(self.pools.stop, GRACE)
            stack.push_async_callback(self.engine.stop, GRACE)
            stack.push_async_callback(tasks.stop)
            client = await stack.enter_async_context(Client(bus=bus, app=APP))
            work = tasks.start(self._play(client, limit), "play")
            await first(stopped, work, tasks.wait())
            if stopped.done():
                raise typer.Exit(128 + stopped.result())
            return work.result()

    async def _play(self, client: Client, limit: float) -> bool:
        await self.engine.start()
        self.printed.engine(self.engine.pid)
        before = await self._last(client)
        runs = [await client.publish(SOURCE, _unlabelled(m), key=m["customer"]) for m in self.sample]
        ids = await full_ids(client.bus, client.app, [run.id for run in runs])
        self.messages = dict(zip(ids, self.sample))
        await self.pools.ready()
        if self.pools.failures:
            raise self.pools.failures[0]
        self.printed.heading(len(ids))
        try:
            async with asyncio.timeout(limit):
                await self._follow(client, before)
        except TimeoutError:
            self.printed.t.error(
                CallTimeout(f"the demo is not finished after {limit:.0f} s", fix="give it longer: --timeout 20m")
            )
        return await self._count(client)

    # -- what is stored, as it is stored -------------------------------------------------------------------------------
    async def _follow(self, client: Client, before: int) -> None:
        """Print each message as it is done with, until all are, and then those whose letters are redriven."""
        name, left = f"dspex-{APP}-demo-{new_id()}", set(self.messages)
        what = [RECORDS, subjects.dead_pattern(APP), *SINKS]
        reader = await client.bus.reader(subjects.stream(APP), what, after=before, name=name)
        try:
            while left:
                for message in await reader.read(500):
                    left.discard(await self._take(client, await payloads.required(client.bus, APP, message)))
                if not left:
                    left = await self._redrive(client)
        finally:
            await reader.close()

    async def _take(self, client: Client, message: Message) -> str | None:
        """The run that is done with, if this message of the stream ends one. It is printed."""
        run = message.headers.get(subjects.RUN, "")
        if subjects.matches(RECORDS, message.subject):
            self.calls.setdefault(run, []).extend(steps([message]))
            await self._start_again(client, message.sequence)
            return None
        if run not in self.messages:
            return None
        sent, calls = self.messages[run], self.calls.get(run, [])
        if message.subject in SINKS:
            self._show(DemoRow.answered(sent, read_event(message), calls))
        else:
            letter = letters.read(message)
            if "message" in sent and run not in self.rows:
                self.wrong.append(letter)
            self._show(DemoRow.dead(sent, letter, calls))
        if self.killed_at is None and len(self.rows) * 2 >= len(self.messages):
            await self._kill(client)
        return run

    def _show(self, row: DemoRow) -> None:
        self.rows[row.run] = row
        self.printed.row(row, list(self.messages).index(row.run) + 1)
        if row.calls and self.first is None:
            self.first = time.monotonic()

    async def _redrive(self, client: Client) -> set[str]:
        """Put right the letters that can be, and run their events again from where they failed. Their runs."""
        wrong, self.wrong = self.wrong, []
        for letter in wrong:
            self.printed.redriven(letter)
            data = {"customer": letter.event.data["customer"], "text": letter.event.data["message"]}
            await letters.redrive(client.bus, APP, [letter], data=data)
        return {letter.run for letter in wrong}

    # -- the crash -----------------------------------------------------------------------------------------------------
    async def _kill(self, client: Client) -> None:
        """Kill the engine as it stands. The model goes on with what it was asked."""
        await self.engine.kill()
        self._dead_since, self.killed_at = time.monotonic(), await self._last(client)
        self.printed.killed(self.engine.pid, len(self.messages) - len(self.rows))

    async def _start_again(self, client: Client, sequence: int) -> None:
        """Start another engine once an answer has come that no engine was there for (the record at `sequence`)."""
        if self.killed_at is None or not self.engine.killed:
            return
        if sequence > self.killed_at or len(self.calls) >= len(list(filter(readable, self.sample))):
            await self.engine.start()
            alone = await client.bus.count(subjects.stream(APP), [RECORDS], after=self.killed_at)
            self.printed.back(self.engine.pid, time.monotonic() - self._dead_since, alone)

    # -- what is counted in the end --------------------------------------------------------------------------------------
    async def _count(self, client: Client) -> bool:
        status = await client.status([POOL])
        made = sum(_calls(pool) for pool in status["pools"])
        now = time.monotonic()
        times = (self.first or now) - self._began, now - self._began
        found = figures(self.sample, self.rows, await client.outputs(self.messages), self.calls, made, *times)
        self.printed.summary(found)
        kept = await self._again(client) and found.kept
        self.printed.end()
        return kept

    async def _again(self, client: Client) -> bool:
        """Do one of the runs again, the first one that is not urgent."""
        from dspex.engine.cli.demo.second_act import play

        routine = (run for run, row in self.rows.items() if row.went_to == SINKS[1])
        return (run := next(routine, None)) is None or await play(client, self.settings, run, self.printed)

    async def _last(self, client: Client) -> int:
        info = await client.bus.stream(subjects.stream(APP))
        return info.last if info else 0


def _calls(pool: Mapping[str, Any]) -> int:
    """How many calls its workers have made: they count them themselves, whatever engines know of them."""
    return sum(child["calls"] for child in pool.get("children", []))


def _unlabelled(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a customer sends: nobody has told what it is about."""
    return {name: value for name, value in message.items() if name != "intent"}
