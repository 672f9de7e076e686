"""`dspex state`: what operators with state keep of their keys, now or as it was then."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.options import duration, how_many
from dspex.engine.cli.terminal.terminal import Terminal, terminal, to_json
from dspex.engine.client.following import hidden

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.status.state import At, KeyState

_WIDEST = 100  # characters of a value in a table
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="An operator with state: count, support/count.")]
AtOption = Annotated[
    str | None,
    typer.Option("--at", metavar="ENTRY|TIME", help="As it was then: a sequence of the stream, 10m (ago), or RFC 3339."),
]


def get(
    context: typer.Context,
    node: NodeArgument,
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="Left out: of an operator whose stream has no keys.")] = "",
    at: AtOption = None,
) -> None:
    """Print what an operator keeps of a key. The exit code is 1 where it keeps nothing."""
    t = terminal(context)
    found = t.run(_of_key(t, node, key, _at(at)))
    for one in found:
        t.emit(one.as_dict(), to_json(one.value))
    if not found:
        t.note(
            f"{node} keeps nothing of the key {key}" if key else f"{node} has something for keys only: dspex state ls {node}"
        )
        raise typer.Exit(1)


def ls(
    context: typer.Context,
    node: NodeArgument,
    topology: Annotated[str | None, typer.Option("--topology", help="Whose operator it is.")] = None,
    since: Annotated[str | None, duration("--since", help="Only what changed in the last 1h, 7d, …")] = None,
    limit: Annotated[int, how_many("--limit", help="At most so many keys.")] = 100,
    at: AtOption = None,
) -> None:
    """List the keys of an operator with what it keeps of them, sorted by key."""
    t = terminal(context)
    what = f"{topology}/{node}" if topology is not None and "/" not in node else node
    found = t.run(_all(t, what, since, _at(at)))
    if t.json:
        for one in found[:limit]:
            t.emit(one.as_dict())
    elif found:
        rows = [{"key": one.key, "partition": one.partition, "value": _short(one)} for one in found[:limit]]
        t.table(rows, {name: name for name in ("key", "partition", "value")}, wrap="value")
    else:
        t.note(f"{node} keeps nothing")
    if len(found) > limit:
        t.note(f"{len(found) - limit:,} more keys: --limit {len(found)}")


async def _of_key(t: Terminal, node: str, key: str, at: At | None) -> list[KeyState]:
    from dspex.engine.client.status.state import of_key

    async with client(t, "state") as c:
        return await _shown(t, c, await of_key(c.bus, c.app, node, key, at))


async def _all(t: Terminal, node: str, since: str | None, at: At | None) -> list[KeyState]:
    from dspex.bus.settings.duration import seconds
    from dspex.engine.client.status.state import listing

    after = datetime.now(UTC) - timedelta(seconds=seconds(since)) if since is not None else None
    async with client(t, "state") as c:
        return await _shown(t, c, await listing(c.bus, c.app, node, since=after, at=at))


async def _shown(t: Terminal, c: Client, found: list[KeyState]) -> list[KeyState]:
    """What is shown of it; why, where that is none of the value."""
    shows = await hidden.HiddenEvents.of(c)
    if found and shows.keeps_secret(found[0].topology, found[0].node):
        where = f"{found[0].topology}/{found[0].node}"
        t.note(
            f"(secret): {where} may keep values of secret fields under other names, and no row says which runs it comes from"
        )
    return [shows.state(one) for one in found]


def _short(one: KeyState) -> str:
    text = to_json(one.value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _at(text: str | None) -> At | None:
    """What `--at` says. Raises ConfigError (DX105)."""
    from dspex.bus.settings.duration import seconds

    if text is None or re.fullmatch(r"[0-9]{1,18}", text):
        return None if text is None else int(text)
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds(text))
    except ConfigError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError as e:
        fix = "the sequence of a log entry (4711), how long ago (10m), or a time (2026-05-01T12:00:00Z)"
        raise ConfigError(f"--at {text!r} says no entry and no time", code="DX105", fix=fix) from e
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
