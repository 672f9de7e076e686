"""`dspex sessions`: which there are, what was said in one, and its end."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.options import duration, how_many
from dspex.engine.cli.terminal.terminal import Terminal, terminal, to_json

if TYPE_CHECKING:
    from dspex.engine.client.status.sessions import SessionInfo

_WIDEST = 200  # characters of a value
_COLUMNS = ("id", "turns", "age", "ttl", "revision", "state")
SessionArgument = Annotated[str, typer.Argument(metavar="ID", help="Of the session.")]
LimitOption = Annotated[int, how_many("--limit", help="At most so many.")]


def ls(
    context: typer.Context,
    since: Annotated[str | None, duration("--since", help="Only those used in the last 1h, 7d, …")] = None,
    limit: LimitOption = 100,
) -> None:
    """List the sessions, those included that have ended and are remembered as that; those used last come first."""
    t = terminal(context)
    found = sorted(t.run(_all(t, since)), key=lambda one: one.touched, reverse=True)
    if t.json:
        for one in found[:limit]:
            t.emit(one.as_dict())
    elif found:
        t.table([_row(one) for one in found[:limit]], {name: name for name in _COLUMNS})
    else:
        t.note("there is no session")
    if len(found) > limit:
        t.note(f"{len(found) - limit:,} more sessions: --limit {len(found)}")


def show(context: typer.Context, id: SessionArgument, limit: LimitOption = 20) -> None:
    """Print what is known of a session, its data and its last turns. The exit code is 1 where there is no such session."""
    t = terminal(context)
    info, data, turns = t.run(_one(t, id, limit))
    if info is None:
        t.note(f"there is no session {id}")
        raise typer.Exit(1)
    lines = [f"{name:<8} {value}" for name, value in _row(info).items()]
    lines += [f"{'data':<8} {_short(data)}"] if data else []
    for turn in turns:
        lines.append(f"{turn['time']}  {turn['call']}")
        lines += [f"  {name:<10} {_short(value)}" for part in ("inputs", "outputs") for name, value in turn[part].items()]
    t.emit({**info.as_dict(), "data": data, "history": turns}, *lines)


def end(
    context: typer.Context,
    id: SessionArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the session again.")] = False,
) -> None:
    """End a session, and forget its data and its turns. The exit code is 1 where there is no such session."""
    t = terminal(context)
    if not yes and not sys.stdin.isatty():
        raise ConfigError(f"to end {id} removes what cannot be brought back", code="DX136", fix="add --yes")
    if not yes and typer.prompt(f"Type the id of the session to have {t.settings().app} end it", err=True) != id:
        raise typer.Abort
    was = t.run(_end(t, id))
    t.emit({"session": id, "ended": was}, f"{'ended' if was else 'no such session, or it has ended'}: {id}")
    if not was:
        raise typer.Exit(1)


async def _all(t: Terminal, since: str | None) -> list[SessionInfo]:
    from dspex.bus.settings.duration import seconds

    after = datetime.now(UTC) - timedelta(seconds=seconds(since)) if since is not None else datetime.min.replace(tzinfo=UTC)
    async with client(t, "sessions") as c:
        return [one async for one in c.sessions() if one.touched >= after]


async def _one(t: Terminal, id: str, limit: int) -> tuple[SessionInfo | None, dict[str, Any], list[dict[str, Any]]]:
    from dspex.bus.serving.sessions.state import MOST_TURNS
    from dspex.engine.client.following import hidden

    async with client(t, "sessions") as c:
        session = c.session(id)
        info = await session.info()
        if info is None or info.ended:
            return info, {}, []
        data, _ = await session.load()
        turns = [turn async for turn in session.history(limit=MOST_TURNS)]  # all: what one quotes may be secret in another
        data, turns = hidden.session(await hidden.secrets_of(c), data, turns)
        return info, data, [turn.as_dict() for turn in turns[-limit:]]


async def _end(t: Terminal, id: str) -> bool:
    from dspex.bus.serving import audit

    async with client(t, "sessions") as c:
        session = c.session(id)
        was = await session.end()
        if was:
            await audit.leave(c.bus, c.app, "end", session=id)
        return was


def _row(one: SessionInfo) -> dict[str, object]:
    from dspex.bus.settings.duration import human

    age = max(0.0, (datetime.now(UTC) - one.touched).total_seconds())
    state = "ended" if one.ended else f"runs {one.running}, {one.waiting} waiting" if one.running else "idle"
    values = (one.id, one.turns, human(age), human(one.ttl.total_seconds()), one.revision, state)
    return dict(zip(_COLUMNS, values))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else to_json(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
