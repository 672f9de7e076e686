"""`dspex pause` and `dspex resume`: let a topology come to rest, and go on, whatever is started again meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from dspex.bus.errors import ConfigError, TopologyError
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.status.rows import StageRow
    from dspex.engine.graph.manifest import Manifest

EVERY = 0.2  # seconds between two looks whether engines have seen it
PATIENCE = 5  # heartbeats that they have for it
PauseTarget = Annotated[
    str,
    typer.Argument(metavar="TOPOLOGY[/NODE]", help="Its name; or a source or a key_by of it, for the stage that begins there."),
]


def pause(
    context: typer.Context,
    what: PauseTarget,
    until: Annotated[str | None, duration("--until", help="It goes on by itself after 30m, 2h, …")] = None,
) -> None:
    """Admit no more events to a topology: what is open comes to its end, the rest waits where it is stored."""
    from dspex.bus.settings.duration import seconds

    t, after = terminal(context), seconds(until) if until is not None else None
    if after == 0:
        raise ConfigError(f"--until {until}: it would go on at once", code="DX105", fix="how long it is to last: --until 30m")
    t.run(_changed(t, "pause", what, after))


def resume(context: typer.Context, what: PauseTarget) -> None:
    """Go on with a topology that was paused."""
    t = terminal(context)
    t.run(_changed(t, "resume", what, None))


async def _changed(t: Terminal, verb: str, what: str, after: float | None) -> None:
    from dspex.bus import subjects
    from dspex.bus.serving import audit
    from dspex.engine.graph import pauses

    topology, _, name = what.partition("/")
    async with client(t, verb) as c:
        known = await c.manifests()
        _check(c, topology, name, known)
        info = await c.bus.stream(subjects.stream(c.app))
        now = info.now if info is not None else 0.0
        end = now + after if after is not None else 0.0
        if end > pauses.LATEST:
            raise ConfigError("--until is longer than a pause may last", code="DX105", fix="leave it out, and resume it later")
        bucket = await c.bus.bucket(subjects.applied(c.app))
        if verb == "pause":
            await pauses.pause(bucket, topology, name, end)
        elif name and (await pauses.read(bucket)).get(topology, pauses.Pauses()).until((), now) is not None:
            raise ConfigError(f"all of {topology} is paused, not {name} alone", code="DX105", fix=f"dspex resume {topology}")
        else:
            await pauses.resume(bucket, topology, name)
        said = {"node": name} if name else {}
        await audit.leave(c.bus, c.app, verb, topology=topology, **said, **({"until": _time(end)} if end else {}))
        rows = await _followed(t, c, topology, known)
    _print(t, verb, what, _time(end) if end else None, rows)


async def _followed(t: Terminal, c: Client, topology: str, known: Mapping[str, Manifest]) -> list[StageRow]:
    """The stages of a topology, once the engines that run them do what was asked, or have had time enough."""
    from dspex.engine.client.status.status import stage_rows

    end = asyncio.get_running_loop().time() + PATIENCE * t.settings().engine.heartbeat
    while True:
        rows = [row for row in await stage_rows(c.bus, c.app, known) if row["topology"] == topology]
        late = [row for row in rows if row["admits"] == row["paused"]]
        if not late:
            return rows
        if asyncio.get_running_loop().time() > end:
            t.note(f"not all engines that run {topology} have said yet that they have seen this: dspex status")
            return rows
        await asyncio.sleep(EVERY)


def _check(c: Client, topology: str, name: str, known: Mapping[str, Manifest]) -> None:
    """Raise TopologyError (DX235) for a topology that is not applied, or a name at which none of its stages begins."""
    if topology not in known:
        fix = did_you_mean(topology, sorted(known), "none is applied")
        raise TopologyError(f"{c.app} has no topology {topology!r}", code="DX235", fix=fix)
    m = known[topology]
    begins = [*m.streams, *sorted(m.hops.keys() - m.dropped)]
    if name and name not in begins:
        raise TopologyError(
            f"no stage of {topology} begins at {name!r}, so it cannot be paused alone",
            code="DX235",
            node=name,
            fix=f"{did_you_mean(name, begins)}  or all of it: dspex pause {topology}",
        )


def _print(t: Terminal, verb: str, what: str, end: str | None, rows: Sequence[StageRow]) -> None:
    keys = ("stage", "source", "lag", "open_calls", "paused")
    waiting = [{key: dict(row)[key] for key in keys} for row in rows]
    head = f"paused {what}{f' until {end}' if end else ''}" if verb == "pause" else f"resumed {what}"
    lines = [_line(row) for row in rows if verb == "pause"]
    t.emit({"what": what, "paused": verb == "pause", "until": end, "waiting": waiting}, head, *lines)


def _line(row: StageRow) -> str:
    lag = row["lag"] or 0
    waits = f"{count(lag, 'event')} wait{'s' if lag == 1 else ''}, {count(row['open_calls'], 'call')} open"
    return f"  {row['topology']}/{row['stage']} ({row['source']}): {waits}{'' if row['paused'] else ', not paused'}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
