"""The verb `demo`: the sample messages through `support_triage`, on a server, an engine, a worker and a model of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from dspex.bus import log, subjects
from dspex.bus.duration import human
from dspex.bus.settings import LOCAL_MODEL, Settings
from dspex.bus.terminal import Terminal, terminal
from dspex.engine.client import Client, read_event
from dspex.engine.engine import Engine
from dspex.engine.runs import Step, steps

APP, SOURCE = "demo", "support.messages"
URGENT, TRIAGED = "support.urgent", "support.triaged"
STORE = ".dspex/demo/jetstream"
COLUMNS = {"customer": "customer", "text": "text", "went_to": "went to", "intent": "intent", "urgency": "urgency"}
COLUMNS |= {"ms": "ms", "tokens": "tokens"}


def register(app: typer.Typer) -> None:
    """Add this room's verb."""
    app.command("demo")(demo)


def demo(
    context: typer.Context,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Only the first so many messages.")] = None,
    wait: Annotated[str, typer.Option("--timeout", help="Give up after this long.")] = "10m",
) -> None:
    """Triage sample messages with a language model that runs on this machine: no key, no network."""
    t = terminal(context)
    if t.require_model is not None:
        t.require_model(LOCAL_MODEL)
    sample = samples()[:count]
    result = t.run(_run(t, sample, wait))
    _tell(t, result)
    if result.missing:
        raise typer.Exit(1)


def samples() -> list[dict[str, Any]]:
    """The messages of the demo."""
    text = files("dspex.topologies").joinpath("support_messages.jsonl").read_bytes()
    return [orjson.loads(line) for line in text.splitlines()]


@dataclass
class _Demo:
    """What the demo brought. `rows`: one for each message, in order."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    calls: int = 0
    tokens: int = 0
    missing: int = 0


async def _run(t: Terminal, sample: list[dict[str, Any]], wait: str) -> _Demo:
    from dspex.topologies.support_triage import topology

    settings = Settings.load(
        app=APP,
        topologies=(),
        telemetry__log=None if t.verbosity else "error",  # the table says what went wrong
        server__local__store=STORE,
        lm={"local": {"model": LOCAL_MODEL}},
        pools={"lightweight": {"size": 1, "slots": 2, "lm": "local"}},
    )
    log.configure(settings.telemetry.log, verbosity=t.verbosity)
    t.note(f"topology  {topology.graph.name} {topology.digest}   {SOURCE} → classify → {URGENT}, {TRIAGED}")
    async with Engine(topology, settings=settings, told=lambda said: _pool_line(t, said)) as engine:
        assert engine.server is not None
        assert engine.pools is not None
        t.note(f"server    {engine.server.url}   data in {_near(settings.store)}")
        await engine.pools.ready()
        async with Client(bus=engine.bus, app=APP) as client:
            return await _triage(t, client, sample, wait)


def _pool_line(t: Terminal, said: Mapping[str, Any]) -> None:
    t.note(f"pool      {said['pool']} ready, dspy {said['dspy_version']}, {LOCAL_MODEL} on this machine's cores")


def _near(path: Path) -> str:
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


async def _triage(t: Terminal, client: Client, sample: list[dict[str, Any]], wait: str) -> _Demo:
    info = await client.bus.stream(subjects.stream(APP))
    before, began = info.last if info else 0, time.monotonic()
    runs = [await client.publish(SOURCE, message, key=message["customer"]) for message in sample]
    with t.progress("triaged", len(runs)) as bar:
        async for finished in client.follow([r.id for r in runs], wait):
            bar.advance(len(finished))
    result = _Demo(seconds=time.monotonic() - began)
    places = await _places(client, before)
    records = await _records(client, before)
    for run, message in zip(runs, sample, strict=True):
        result.rows.append(_row(run.id, message, places, records))
    result.calls = sum(len(r) for r in records.values())
    result.tokens = sum(row["tokens"] or 0 for row in result.rows)
    result.missing = sum(row["went_to"] is None for row in result.rows)
    return result


async def _places(client: Client, before: int) -> dict[str, tuple[str, Any]]:
    """Where each run ended, by its id: (subject, data) of what reached a sink, or ("dead letter", why)."""
    info = await client.bus.stream(subjects.stream(APP))
    assert info is not None
    found: dict[str, tuple[str, Any]] = {}
    for message in await client.bus.scan(info.name, [URGENT, TRIAGED], start=before + 1, stop=info.last):
        event = read_event(message)
        found[event.run] = (event.subject, event.data)
    async for letter in client.dead_letters("*"):
        found.setdefault(letter.run, ("dead letter", f"{letter.node}: {letter.message}"))
    return found


async def _records(client: Client, before: int) -> dict[str, list[Step]]:
    """The recorded calls of each run."""
    info = await client.bus.stream(subjects.stream(APP))
    assert info is not None
    inboxes = subjects.result(APP, "*", "*", "*")
    found: dict[str, list[Step]] = {}
    for step in steps(await client.bus.scan(info.name, [inboxes], start=before + 1, stop=info.last)):
        found.setdefault(step.run, []).append(step)
    return found


def _row(
    run: str, message: dict[str, Any], places: Mapping[str, tuple[str, Any]], records: Mapping[str, list[Step]]
) -> dict[str, Any]:
    place, data = places.get(run, (None, None))
    mine = records.get(run, [])
    fields: dict[str, Any] = data if isinstance(data, dict) else {}
    return {
        "run": run,
        "customer": message["customer"],
        "text": str(message.get("text", "")),
        "went_to": place,
        "intent": fields.get("intent"),
        "urgency": fields.get("urgency"),
        "ms": round(sum(s.elapsed.total_seconds() for s in mine) * 1000) if mine else None,
        "tokens": sum(s.usage.input_tokens + s.usage.output_tokens for s in mine) if mine else None,
        "why": None if fields else data,
    }


def _tell(t: Terminal, result: _Demo) -> None:
    if t.json:
        for row in result.rows:
            t.emit(row)
        summary = {k: v for k, v in vars(result).items() if k != "rows"}
        t.emit({"summary": summary | {"messages": len(result.rows), **_counts(result)}})
        return
    shown = [row | {"text": _short(row["text"], 48), "intent": row["intent"] or _short(row["why"], 30)} for row in result.rows]
    t.table(shown, COLUMNS)
    counts = _counts(result)
    rate = len(result.rows) / result.seconds
    t.emit({}, "")
    t.emit(
        {},
        f"{len(result.rows)} messages in {human(result.seconds)} ({rate:.1f}/s): "
        f"{counts['urgent']} urgent, {counts['triaged']} triaged, {counts['dead_letters']} dead letters, "
        f"{result.missing} missing; {result.calls} calls, {result.tokens:,} tokens, $0.00",
    )
    t.emit({}, NEXT)


def _counts(result: _Demo) -> dict[str, int]:
    went = [row["went_to"] for row in result.rows]
    return {"urgent": went.count(URGENT), "triaged": went.count(TRIAGED), "dead_letters": went.count("dead letter")}


def _short(text: Any, most: int) -> str:
    flat = " ".join(str(text or "").split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


NEXT = """
The model has 135 million parameters and is often wrong; nothing was lost, and every answer is on record.
Where to look next:
  dspex init my-pipeline        a project of your own, with this topology in it
  dspex run                     its server, engine and workers; ^C drains
  dspex publish support.messages text="My card was stolen!" --wait
  dspex watch support.urgent    live, from another shell
  docs/design.md                how it works, and what is promised"""
