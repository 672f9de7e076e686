"""`dspex dlq`: look at dead letters, run them again, or drop them."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import orjson
import typer

from dspex.bus.codecs.json import json_bytes, load_json
from dspex.bus.codecs.times import moment
from dspex.bus.errors import ConfigError, DecodeError, DspexError, InvalidInput
from dspex.engine.cli.events.selection import Selection
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.options import MOST_SEQUENCE, duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal, to_json
from dspex.engine.client.following import hidden

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.letters import DeadLetter

T = TypeVar("T")

EDITOR = "vi"  # where neither VISUAL nor EDITOR is set, as POSIX has it

Sequences = Annotated[list[int] | None, typer.Argument(metavar="SEQ", min=1, max=MOST_SEQUENCE, help="As dlq ls shows them.")]
TopologyOption = Annotated[str | None, typer.Option("--topology", help="Only of this topology.")]
NodeOption = Annotated[str | None, typer.Option("--node", help="Only those of this operator: draft, support/draft.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only with this error: InvalidInput, DX502.")]
SinceOption = Annotated[str | None, duration("--since", help="Only of the last 1h, 7d, …")]
AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")]


def ls(
    context: typer.Context,
    topology: TopologyOption = None,
    node: NodeOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
) -> None:
    """List the dead letters, oldest first."""
    t = terminal(context)
    if not _with_client(t, "dlq", lambda c: _shown(t, c, Selection((), topology, node, reason, since))) and not t.json:
        t.note("no dead letters")


def _with_client(t: Terminal, name: str, use: Callable[[Client], Awaitable[T]]) -> T:
    async def main() -> T:
        async with client(t, name) as c:
            return await use(c)

    return t.run(main())


async def _shown(t: Terminal, c: Client, selection: Selection) -> int:
    """Print letters; how many. With --json as they are read: their data together may be larger than memory."""
    number, rows, secrets = 0, list[dict[str, object]](), await hidden.secrets_of(c)
    async for d in hidden.each_whole(c, secrets, selection.each(t, c)):
        number += 1
        if t.json:
            t.emit(d.as_dict())
        else:
            rows.append(_row(d))
    columns = {"sequence": "seq"} | {k: k for k in ("time", "node", "reason", "attempts", "run", "message")}
    if rows:
        t.table(rows, columns, wrap="message")
    return number


def _row(d: DeadLetter) -> dict[str, object]:
    return {
        "sequence": d.sequence,
        "time": d.time.astimezone().strftime("%d %b %H:%M:%S"),
        "node": f"{d.topology}/{d.node}",
        "reason": d.reason,
        "attempts": d.attempts,
        "run": d.run,
        "message": d.message if len(d.message) <= 100 else f"{d.message[:99]}…",
    }


def show(context: typer.Context, sequence: Annotated[int, typer.Argument(metavar="SEQ", min=1, max=MOST_SEQUENCE)]) -> None:
    """Print one dead letter: the event, what was wrong, where, and what to do."""
    t = terminal(context)
    d = _with_client(t, "dlq", lambda c: _only(t, c, sequence))
    tries = f", {count(d.attempts, 'attempt')}" if d.attempts > 1 else ""
    lines = [
        f"dead letter {d.sequence}  {d.topology}/{d.node}  {d.time.isoformat(timespec='seconds')}{tries}",
        f"{d.reason}[{d.code}]  {d.message}",
        f"  fix: {d.fix}",
        f"run    {d.run}",
        f"event  {d.event.subject} {d.event.sequence or ''}  {d.event.id}",
        *(f"{name:<6} {value}" for name, value in (("key", d.event.key), ("session", d.event.session)) if value),
        f"data   {_readable(d.event.data)}",
        *(d.traceback.rstrip().split("\n") if d.traceback else []),
    ]
    t.emit(d.as_dict(traceback=True), *lines)


async def _only(t: Terminal, c: Client, sequence: int) -> DeadLetter:
    found = [d async for d in Selection((sequence,)).each(t, c)]
    (d,) = await hidden.whole_letters(c, await hidden.secrets_of(c), found)
    return d


def _readable(data: Any) -> str:
    return repr(data) if isinstance(data, bytes) else to_json(data)


def redrive(
    context: typer.Context,
    sequences: Sequences = None,
    topology: TopologyOption = None,
    node: NodeOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    edit: Annotated[bool, typer.Option("--edit", help="Open the data of each in $EDITOR first.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Change a field: k=v or k:=json.")] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="now|TIME", help="Their event time from now on, RFC 3339: for late ones.")
    ] = None,
    dry_run: DryRunOption = False,
    everything: AllOption = False,
) -> None:
    """Run the events again from where they failed: the same event ids, the same runs."""
    from dspex.engine.cli.terminal.arguments import pairs

    t, fields, at = terminal(context), pairs(set_ or []), _time(time)
    selection = Selection(tuple(sequences or ()), topology, node, reason, since)
    selection.check("redrive", everything)

    async def main(c: Client) -> int:
        if dry_run:
            return await _would(t, c, selection, "redriven")
        return await _redriven(t, c, selection, edit, fields, at)

    done = _with_client(t, "dlq", main)
    if not dry_run:
        t.emit({"redriven": done}, f"{count(done, 'dead letter')} redriven" + (": their events run again" if done else ""))


def _time(text: str | None) -> datetime | Literal["now"] | None:
    """What `--time` says. Raises ConfigError (DX105)."""
    if text is None or text == "now":
        return text  # type: ignore[return-value]
    try:
        return moment(text)
    except (ValueError, OverflowError) as e:
        raise ConfigError(f"--time {text}: {e}", code="DX105", fix="now, or as 2026-01-31T09:00:00Z") from e


async def _redriven(
    t: Terminal, c: Client, selection: Selection, edit: bool, fields: dict[str, Any], time: datetime | Literal["now"] | None
) -> int:
    """Redrive letters; how many. All are changed first: an editor may be left with an error. Only what was edited is kept.

    One that cannot be redriven holds up no other: the reason is noted, and the first one is raised at the end.
    """
    from dspex.engine.client import letters
    from dspex.engine.log.redriven import Redrives

    found: dict[int, Any] = {}
    async for d in selection.each(t, c):
        changed = None if d.unreadable else _changed(d, edit, fields)
        found[d.sequence] = changed if edit else None
    at = await letters.seconds_of(c.bus, c.app, time)
    await letters.audited(c.bus, c.app, "redrive", list(found), changed=edit or bool(fields) or at is not None)
    redrives, done, refused = Redrives(c.bus, c.app), 0, dict[int, DspexError]()
    with t.progress("redrive", len(found)) as bar:
        for sequence, edited in found.items():
            try:
                done += await letters.again(redrives, sequence, partial(_data, edit, edited, fields), at)
            except letters.REFUSED as e:
                refused[sequence] = e
            bar.advance()
    if passed_over := len(found) - done - len(refused):
        t.note(f"{count(passed_over, 'dead letter')} was redriven or dropped by somebody else meanwhile")
    if refused:
        for sequence, why in refused.items():
            t.note(f"dead letter {sequence} was not redriven: {why.message}")
        t.note(f"{count(done, 'dead letter')} redriven")
        raise next(iter(refused.values()))
    return done


def _data(edit: bool, edited: Any, fields: dict[str, Any], d: DeadLetter) -> Any:
    return edited if edit else _changed(d, False, fields)


def drop(
    context: typer.Context,
    sequences: Sequences = None,
    topology: TopologyOption = None,
    node: NodeOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    dry_run: DryRunOption = False,
    everything: AllOption = False,
) -> None:
    """Remove dead letters for good: their events are given up."""
    from dspex.engine.client import letters

    t = terminal(context)
    selection = Selection(tuple(sequences or ()), topology, node, reason, since)
    selection.check("drop", everything)

    async def main(c: Client) -> int:
        if dry_run:
            return await _would(t, c, selection, "dropped")
        found = [d.sequence async for d in selection.each(t, c)]
        await letters.audited(c.bus, c.app, "drop", found)
        return await letters.drop(c.bus, c.app, found)

    done = _with_client(t, "dlq", main)
    if not dry_run:
        t.emit({"dropped": done}, f"{count(done, 'dead letter')} dropped")


async def _would(t: Terminal, c: Client, selection: Selection, what: str) -> int:
    number = await _shown(t, c, selection)
    t.note(f"{count(number, 'dead letter')} would be {what}; nothing was done")
    return number


def _changed(d: DeadLetter, edit: bool, fields: dict[str, Any]) -> Any:
    """The event's data as it is to be run again; None: as it is."""
    data = _edited(d) if edit else None
    if not fields:
        return data
    now = d.event.data if data is None else data
    if not isinstance(now, dict):
        message = f"dead letter {d.sequence}: --set changes fields, and its data is {type(now).__name__}"
        raise ConfigError(message, code="DX120", fix="use --edit")
    return {**now, **fields}


def _json(d: DeadLetter) -> str:
    try:
        json_bytes(d.event.data)  # orjson writes null for NaN
        return orjson.dumps(d.event.data, option=orjson.OPT_INDENT_2).decode()
    except (TypeError, InvalidInput) as e:  # a table, or what is nested deeper than it can be written
        message = f"dead letter {d.sequence}: its data cannot be edited as JSON: {e}"
        raise ConfigError(message, code="DX120", fix="redrive it as it is, or drop it") from e


def _edited(d: DeadLetter) -> Any:
    """What a person makes of the data; None where they left it alone. Raises ConfigError (DX120)."""
    raw = isinstance(d.event.data, bytes)
    before = d.event.data.decode(errors="replace") if raw else _json(d)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{d.sequence}.json"
        file.write_text(before)
        command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or EDITOR
        try:
            code = subprocess.run([*shlex.split(command), str(file)], check=False).returncode
        except OSError as e:
            raise ConfigError(f"cannot run {command}: {e.strerror}", code="DX120", fix="set EDITOR, or use --set") from e
        after = file.read_text()
    if code:
        raise ConfigError(f"{command} ended with {code}: nothing was redriven", code="DX120", fix="save and leave it normally")
    if after == before and not raw:
        return None
    try:
        return load_json(after.encode())
    except (DecodeError, UnicodeEncodeError) as e:
        raise ConfigError(f"what was saved: {e}: nothing was redriven", code="DX120", fix="edit it again") from e
