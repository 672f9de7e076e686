"""A fork: a run of the past done again with one change. What comes of it is a run of its own, which is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dspex.bus import codecs, subjects
from dspex.bus.errors import RecordingIncomplete
from dspex.bus.message import derived_id, new_id
from dspex.bus.port import NewMessage
from dspex.bus.serving import audit
from dspex.engine.again.answering import CallsSoFar
from dspex.engine.again.change import ForkChange, altered, before, changed, kept, outputs_of, place_of
from dspex.engine.again.code import of_run
from dspex.engine.again.repeat import Repeated, repeat
from dspex.engine.again.state import file_of
from dspex.engine.client import publish as publishing
from dspex.engine.client.client import Client
from dspex.engine.client.runs.diff import Diff, compare
from dspex.engine.client.runs.export import RunFile, written
from dspex.engine.client.runs.kept import keep
from dspex.engine.client.runs.then.changes import CODE
from dspex.engine.client.runs.tree import Happening
from dspex.engine.graph.graph import Graph


@dataclass(frozen=True)
class Forked:
    """What came of a fork. `run`: its id. `delivered`: outputs that were published to the sinks. `without`: see `Repeated`."""

    run: str
    parent: str
    at: str
    served: int
    called: int
    tokens: int
    delivered: int
    diff: Diff
    without: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As the CLI prints it."""
        return {name: value for name, value in vars(self).items() if name != "diff"}


async def forked(
    client: Client,
    run: str,
    at: str,
    change: ForkChange,
    graphs: Sequence[Graph],
    *,
    deliver: bool = False,
    told: Callable[[CallsSoFar], None] | None = None,
) -> Forked:
    """Do a run again with one change, and keep what comes of it. See `Client.fork`."""
    change.check()
    file = await file_of(client, client.run(run), graphs)
    if file.info.status == "running":
        fix = "wait for its end: dspex runs wait"
        raise RecordingIncomplete(f"run {file.info.id} is not over", run=file.info.id, fix=fix)
    if not change.topology and any(one.what == CODE for one in file.changes):
        fix = f"fork its parent, {file.info.parent}; or change the code again: --with TARGET"
        raise RecordingIncomplete(f"run {file.info.id} comes from a fork of other code, which is not kept", fix=fix)
    earlier = before(file, of_run(graphs, file.info.topology, file.root.data))
    place = place_of(at, file, earlier.graphs)
    other, code = changed(change, place, file, earlier.graphs)
    alter = altered([one for one in (earlier.alter, outputs_of(change, place)) if one is not None])
    states = [*earlier.programs, *([change.program] if change.program is not None else [])]
    found = await repeat(client, other, code, mode="hybrid", alter=alter, states=states, told=told)
    other = replace(other, changes=(*file.changes, kept(change, place)))
    made = _run_of_its_own(found, other, at)
    diff = compare(file.root, made.root, (file.info, made.info))
    await keep(client.bus, client.app, written(made), f"fork of …{file.info.id[-8:]} at {at}")
    await audit.leave(client.bus, client.app, "fork", run=made.info.id, parent=file.info.id, at=at, deliver=deliver)
    sent = await _delivered(client, made) if deliver else 0
    return Forked(made.info.id, file.info.id, at, found.served, found.called, found.tokens, sent, diff, found.without)


def _run_of_its_own(found: Repeated, parent: RunFile, at: str) -> RunFile:
    """What came of it, as a run that begins now."""
    old, now = found.file.info.id, datetime.now(UTC)
    later, id = now - found.file.root.time, new_id(now.timestamp())
    root = _moved(found.file.root, old, id, later)
    ended = max((one.time for one in root), default=now)
    info = replace(found.file.info, id=id, parent=parent.info.id, started=now, finished=ended)
    return replace(found.file, info=info, root=root, state=parent.state, changes=parent.changes)


def _moved(one: Happening, old: str, new: str, later: timedelta) -> Happening:
    attempts = [replace(step, run=new, started=step.started + later) for step in one.attempts]
    for step, was in zip(attempts, one.attempts):
        if was.event == old:
            attempts[attempts.index(step)] = replace(step, event=new)
    return replace(
        one,
        id=new if one.id == old else one.id,
        cause=new if one.cause == old else one.cause,
        time=one.time + later,
        attempts=attempts,
        below=[_moved(below, old, new, later) for below in one.below],
    )


async def _delivered(client: Client, file: RunFile) -> int:
    """Publish the outputs of a fork to the sinks, once: the server knows the ids of those that it has. How many."""
    for number, one in enumerate(found := [one for one in file.root if one.kind == "output"]):
        body, kind = codecs.encode(one.data, "json")
        id = derived_id(file.info.id, f"fork/{one.node}", number)
        headers = {subjects.EVENT_ID: id, subjects.MESSAGE_ID: id, subjects.RUN: file.info.id}
        headers |= {subjects.SESSION: file.session} if file.session is not None else {}
        headers |= {subjects.CONTENT_TYPE: kind} if kind != codecs.JSON else {}
        await publishing.store(client.bus, client.app, NewMessage(one.node, body, headers))
    return len(found)
