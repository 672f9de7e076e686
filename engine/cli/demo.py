"""The verb `demo`: the sample messages through `support_triage`, on a server, an engine, a worker and a model of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from dspex.bus import subjects
from dspex.bus.errors import CallTimeout
from dspex.bus.message import Event
from dspex.bus.serving import payloads
from dspex.bus.settings.duration import human, seconds
from dspex.bus.settings.model import LOCAL_MODEL, Settings
from dspex.bus.tasks import Tasks
from dspex.engine.cli.terminal import log
from dspex.engine.cli.terminal.client import count, shown
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.client.client import Client
from dspex.engine.client.letters import DeadLetter
from dspex.engine.client.run import full_ids
from dspex.engine.client.steps import Step, steps
from dspex.engine.hosting.engine import Engine, until_stopped
from dspex.workers.models import weights

APP, SOURCE = "demo", "support.messages"
URGENT, TRIAGED = "support.urgent", "support.triaged"
DEAD = "dead letter"
STORE = Path(".dspex/demo/jetstream")
COLUMNS = {"text": "message", "to": "went to", "intent": "intent", "urgency": "urgency", "ms": "ms", "tokens": "tokens"}
WIDTH = 42  # of the message in the table, which then fits 100 columns


def demo(
    context: typer.Context,
    number: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="Only the first N messages.")] = None,
    timeout: Annotated[str, typer.Option("--timeout", metavar="DUR", help="Give up after this long.")] = "10m",
) -> None:
    """Triage sample messages with a language model that runs on this machine: no key, no network."""
    t, limit = terminal(context), seconds(timeout)
    weights.require(LOCAL_MODEL)
    result = t.run(_run(t, samples()[:number], limit))
    _print(t, result)
    if result.missing:
        raise typer.Exit(1)


def samples() -> list[dict[str, Any]]:
    """The messages of the demo."""
    text = files("dspex.topologies").joinpath("support_messages.jsonl").read_bytes()
    return [orjson.loads(line) for line in text.splitlines()]


@dataclass(frozen=True)
class _Demo:
    """What the demo brought. `rows`: one for each message, in order."""

    rows: list[dict[str, Any]]
    seconds: float

    @property
    def missing(self) -> int:
        """Messages that are neither at a sink nor among the dead letters."""
        return self.went(None)

    def went(self, place: str | None) -> int:
        """How many messages ended there."""
        return sum(row["went_to"] == place for row in self.rows)

    def total(self, key: str) -> int:
        return sum(row[key] or 0 for row in self.rows)


# -- run -----------------------------------------------------------------------------------------------------------
def _settings(t: Terminal) -> Settings:
    """Settings of its own, so that the demo is the same in every folder: no file and no variable changes it."""
    demo = {
        "app": APP,
        "server": {"url": t.flags.get("server__url"), "local": {"store": STORE}},
        "lm": {"local": {"model": LOCAL_MODEL}},
        "pools": {"lightweight": {"size": 1, "slots": 2}},
        "telemetry": {"log": "debug" if t.verbosity else "error"},  # the table says what went wrong
    }
    return Settings.model_validate(demo).placed(Path.cwd(), {"telemetry.log": "flag"})


async def _run(t: Terminal, sample: Sequence[dict[str, Any]], limit: float) -> _Demo:
    from dspex.topologies.support_triage import topology

    settings = _settings(t)
    log.configure(settings.telemetry.log, quiet=t.quiet)
    t.note(f"topology  {topology.name} {topology.digest[:8]}  {SOURCE} → classify → {URGENT}, {TRIAGED}")
    async with Engine(topology, settings=settings, on_ready=lambda said: _pool_line(t, said)) as engine:
        server = engine.running.server
        where = f"started, data in {shown(settings.store)}" if server.started else "yours"
        t.note(f"server    {server.url}  {where}")
        async with Client(bus=engine.running.bus, app=APP) as client:
            tasks = Tasks("demo")
            work = tasks.start(_triage(t, engine, client, sample, limit), "triage")
            try:
                await until_stopped(engine, work)  # an engine that fails ends the demo, not its time limit
                return work.result()
            finally:
                t.note("draining")
                await tasks.stop()


def _pool_line(t: Terminal, said: Mapping[str, Any]) -> None:
    t.note(f"pool      {said['pool']} {said['size']}/{said['size']} ready, dspy {said['dspy_version']}, {LOCAL_MODEL}")


async def _triage(t: Terminal, engine: Engine, client: Client, sample: Sequence[dict[str, Any]], limit: float) -> _Demo:
    pools = engine.running.pools
    await pools.ready()
    if pools.failures:
        raise pools.failures[0]
    info = await client.bus.stream(subjects.stream(APP))
    before, began = info.last if info else 0, time.monotonic()
    runs = [await client.publish(SOURCE, message, key=message["customer"]) for message in sample]
    ids = await full_ids(client.bus, [run.id for run in runs])
    with t.progress("triaged", len(ids)) as bar:
        try:
            async for finished in client.follow(ids, limit):
                bar.advance(len(finished))
        except CallTimeout as e:
            t.error(e)  # and show how far it came
    took = time.monotonic() - began
    outputs, records = await client.outputs(ids), await _records(client, before)
    letters = {letter.run: letter async for letter in client.dead_letters("*")}
    rows = [_row(id, m, outputs[id], letters.get(id), records.get(id, [])) for id, m in zip(ids, sample, strict=True)]
    return _Demo(rows, took)


async def _records(client: Client, before: int) -> dict[str, list[Step]]:
    """The recorded calls of each run that was published behind the sequence `before`."""
    info = await client.bus.stream(subjects.stream(APP))
    found: dict[str, list[Step]] = {}
    if info is None:
        return found
    records = subjects.record(APP, "*", "*", "*", "*")
    stored = await client.bus.scan(info.name, [records], start=before + 1, stop=info.last)
    for step in steps([await payloads.required(client.bus, APP, m) for m in stored]):
        found.setdefault(step.run, []).append(step)
    return found


def _row(
    run: str, message: Mapping[str, Any], outputs: Sequence[Event[Any]], letter: DeadLetter | None, calls: Sequence[Step]
) -> dict[str, Any]:
    data: Mapping[str, Any] = outputs[0].data if outputs else {}
    return {
        "run": run,
        "customer": message["customer"],
        "text": str(message.get("text", "")),
        "went_to": outputs[0].subject if outputs else DEAD if letter else None,
        "intent": data.get("intent"),
        "urgency": data.get("urgency"),
        "calls": len(calls),
        "ms": round(sum(c.elapsed.total_seconds() for c in calls) * 1000) if calls else None,
        "tokens": sum(c.usage.input_tokens + c.usage.output_tokens for c in calls) if calls else None,
        "why": f"{letter.node}: {letter.message}" if letter else None,
    }


# -- print ---------------------------------------------------------------------------------------------------------
def _print(t: Terminal, result: _Demo) -> None:
    figures = {
        "messages": len(result.rows),
        "urgent": result.went(URGENT),
        "triaged": result.went(TRIAGED),
        "dead_letters": result.went(DEAD),
        "missing": result.missing,
        "calls": result.total("calls"),
        "tokens": result.total("tokens"),
        "seconds": round(result.seconds, 3),
    }
    if t.json:
        for row in result.rows:
            t.emit(row)
        t.emit({"summary": figures})
        return
    t.line("")
    t.table([_shown(row) for row in result.rows], COLUMNS, wrap="text")
    t.line("")
    for row in result.rows:
        if row["why"]:
            t.line(f"{DEAD}  {row['customer']}  {row['why']}")
    rate = len(result.rows) / max(result.seconds, 1e-3)
    t.line(
        f"{count(len(result.rows), 'message')} in {human(round(result.seconds, 1))} ({rate:.1f}/s): "
        f"{figures['urgent']} urgent, {figures['triaged']} triaged, {count(result.went(DEAD), DEAD)}, {result.missing} missing"
    )
    t.line(f"{count(result.total('calls'), 'call')} of the model, {count(result.total('tokens'), 'token')}, no cost")
    for line in NEXT.split("\n"):
        t.line(line)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as people read it."""
    text = " ".join(row["text"].split()) or "(no text)"
    return {
        **row,
        "text": text if len(text) <= WIDTH else f"{text[: WIDTH - 1].rstrip()}…",
        "to": "MISSING" if row["went_to"] is None else row["went_to"].removeprefix("support."),
    }


NEXT = """
The model has 135 million parameters and is often wrong. Every answer is on record, no message is lost.
Where to look next:
  dspex init my-pipeline --no-key   a project of your own; it prints what to type next
  dspex run                         there: its server, engine and workers; ^C drains
  dspex publish support.messages customer=c1 text="My card was stolen!" --wait
  dspex watch support.urgent        live, from another terminal
  docs/getting-started.md           all of this, step by step"""
