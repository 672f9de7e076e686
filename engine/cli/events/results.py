"""What became of published events: `dspex publish --wait`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.records import Usage
from dspex.engine.cli.terminal.client import count, spent
from dspex.engine.cli.terminal.terminal import Terminal, to_json

if TYPE_CHECKING:
    from dspex.bus.message import Event
    from dspex.engine.client.client import Client
    from dspex.engine.client.following.progress import RunProgress
    from dspex.engine.client.letters import DeadLetter
    from dspex.engine.client.run import Run

MOST_LETTERS = 5  # dead letters that are printed one by one


async def print_results(t: Terminal, c: Client, runs: Sequence[Run], limit: float | None, began: float) -> int:
    """Wait until the runs are done, and print their outputs. Returns how many of them failed.

    Raises CallTimeout after `limit` seconds, TopologyError where nothing reads their subject.
    """
    from dspex.engine.client.following import hidden
    from dspex.engine.client.following.naming import full_ids

    await _read_by_someone(t, c, runs[0].subject)
    full = await full_ids(c.bus, c.app, [run.id for run in runs])
    ids = list(dict.fromkeys(full))
    found = await _finished(t, c, ids, limit)
    took = time.monotonic() - began
    letters = [d async for d in c.dead_letters("*") if d.run in found] if any(p.dead_letters for p in found.values()) else []
    shows, outputs = await hidden.HiddenEvents.of(c), await c.outputs(ids)
    if shows.secrets and (t.json or len(runs) == 1):
        outputs = {id: [await shows.shown(one) for one in sent] for id, sent in outputs.items()}
    if shows.secrets:
        letters[:MOST_LETTERS] = await hidden.whole_letters(c, shows.secrets, letters[:MOST_LETTERS])
    if t.json:
        for run, id in zip(runs, full, strict=True):
            t.emit(_object(run, found[id], outputs[id]))
    elif len(runs) == 1:
        _print_one(t, found[ids[0]], outputs[ids[0]], took)
    else:
        _print_all(t, list(found.values()), outputs, took)
    if not t.json:
        _print_letters(t, letters)
    return sum(1 for p in found.values() if p.dead_letters)


async def _read_by_someone(t: Terminal, c: Client, subject: str) -> None:
    applied = await c.manifests()
    if not any(subjects.matches(source, subject) for m in applied.values() for source in m.subjects):
        fix = "apply the topology that reads it: dspex run"
        raise TopologyError(f"no applied topology reads {subject}: there is nothing to wait for", code="DX235", fix=fix)
    if not (await c.status())["engines"]:
        t.note("no engine is running: the runs wait for one (dspex run)")


async def _finished(t: Terminal, c: Client, ids: Sequence[str], limit: float | None) -> dict[str, RunProgress]:
    found: dict[str, RunProgress] = {}
    dead = 0
    with t.progress("runs", len(ids)) if len(ids) > 1 else nullcontext() as bar:
        async for some in c.follow(ids, limit):
            found |= {p.id: p for p in some}
            dead += sum(p.dead_letters for p in some)
            if bar:
                bar.advance(len(some), count(dead, "dead letter") if dead else "")
    return found


def _object(run: Run, p: RunProgress, outputs: Sequence[Event[object]]) -> dict[str, object]:
    return {
        "run": p.id,
        "subject": run.subject,
        "stream": run.stream,
        "seq": run.sequence,
        "duplicate": run.duplicate,
        "status": p.status,
        "outputs": [{"subject": e.subject, "data": e.data} for e in outputs],
        "calls": p.calls,
        "usage": asdict(p.usage),
    }


def _print_one(t: Terminal, p: RunProgress, outputs: Sequence[Event[object]], took: float) -> None:
    t.line(f"run {p.id}  {p.status} in {took:.1f} s  {spent(p.calls, p.usage)}")
    for event in outputs:
        t.line(f"{event.subject}  {to_json(event.data)}")


def _print_all(t: Terminal, runs: Sequence[RunProgress], outputs: Mapping[str, Sequence[Event[object]]], took: float) -> None:
    failed = sum(1 for p in runs if p.dead_letters)
    usage = sum((p.usage for p in runs), Usage())
    bad = f", {failed:,} failed" if failed else ""
    rate = len(runs) / max(took, 1e-3)
    figures = spent(sum(p.calls for p in runs), usage)
    t.line(f"{len(runs) - failed:,} runs done{bad} in {took:.1f} s ({rate:.1f}/s)  {figures}")
    for subject, number in sorted(Counter(e.subject for events in outputs.values() for e in events).items()):
        t.line(f"{subject}  {count(number, 'event')}")


def _print_letters(t: Terminal, letters: Sequence[DeadLetter]) -> None:
    for d in letters[:MOST_LETTERS]:
        t.note(f"dead letter {d.sequence}  {d.node}: {d.reason}: {d.message}")
    if letters:
        more = f"{len(letters) - MOST_LETTERS:,} more; " if len(letters) > MOST_LETTERS else ""
        t.note(f"{more}see dspex dlq ls, dspex dlq show {letters[0].sequence}")
