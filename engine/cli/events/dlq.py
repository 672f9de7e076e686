"""`dspex dlq`: look at dead letters, run them again, or drop them."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
import typer

from dspex.bus.errors import ConfigError, RunError
from dspex.engine.cli.terminal.client import client, count, short
from dspex.engine.cli.terminal.terminal import Terminal, terminal, to_json

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.letters import DeadLetter

T = TypeVar("T")

EDITOR = "vi"  # where neither VISUAL nor EDITOR is set, as POSIX has it

Sequences = Annotated[list[int] | None, typer.Argument(metavar="[SEQ]...", help="As dlq ls shows them.")]
TopologyOption = Annotated[str | None, typer.Option("--topology", help="Only of this topology.")]
NodeOption = Annotated[str | None, typer.Option("--node", help="Only those that failed at this operator.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only with this error: InvalidInput, DX502.")]
SinceOption = Annotated[str | None, typer.Option("--since", metavar="DUR", help="Only of the last 1h, 7d, …")]
AllOption = Annotated[bool, typer.Option("--all", help="All of them.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")]


@dataclass(frozen=True)
class Selection:
    """Which dead letters: those that every part of it takes."""

    sequences: Sequence[int] = ()
    topology: str | None = None
    node: str | None = None
    reason: str | None = None
    since: str | None = None

    def check(self, verb: str, everything: bool) -> None:
        """Refuse to act on all letters by accident. Raises ConfigError (DX136)."""
        if not everything and not any((self.sequences, self.topology, self.node, self.reason, self.since)):
            fix = f"name some: dspex dlq {verb} SEQ, --node, --reason, --since, …; or say --all"
            raise ConfigError(f"dlq {verb} without a selection would take every dead letter", code="DX136", fix=fix)

    async def letters(self, c: Client) -> list[DeadLetter]:
        """The letters. Raises RunError (DX623) for a sequence that is none."""
        from dspex.bus.settings.duration import seconds

        after = datetime.now(UTC) - timedelta(seconds=seconds(self.since)) if self.since else None
        found = [
            d
            async for d in c.dead_letters(self.topology or "*", node=self.node, reason=self.reason)
            if (not self.sequences or d.sequence in self.sequences) and (after is None or d.time >= after)
        ]
        missing = sorted(set(self.sequences) - {d.sequence for d in found})
        if missing:
            text = ", ".join(map(str, missing))
            raise RunError(f"there is no such dead letter: {text}", code="DX623", fix="dspex dlq ls shows those there are")
        return found


def ls(
    context: typer.Context,
    topology: TopologyOption = None,
    node: NodeOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
) -> None:
    """List the dead letters, oldest first."""
    t = terminal(context)
    selection = Selection((), topology, node, reason, since)
    found = _with_client(t, "dlq", selection.letters)
    if not found and not t.json:
        t.note("no dead letters")
        return
    _table(t, found)


def _with_client(t: Terminal, name: str, use: Callable[[Client], Awaitable[T]]) -> T:
    async def main() -> T:
        async with client(t, name) as c:
            return await use(c)

    return t.run(main())


def _table(t: Terminal, letters: Sequence[DeadLetter]) -> None:
    if t.json:
        for d in letters:
            t.emit(d.as_dict())
        return
    rows = [
        {
            "sequence": d.sequence,
            "time": d.time.astimezone().strftime("%d %b %H:%M:%S"),
            "node": f"{d.topology}/{d.node}",
            "reason": d.reason,
            "attempts": d.attempts,
            "run": short(d.run),
            "message": d.message if len(d.message) <= 100 else f"{d.message[:99]}…",
        }
        for d in letters
    ]
    t.table(
        rows, {"sequence": "seq"} | {k: k for k in ("time", "node", "reason", "attempts", "run", "message")}, wrap="message"
    )


def show(context: typer.Context, sequence: Annotated[int, typer.Argument(metavar="SEQ")]) -> None:
    """Print one dead letter: the event, what was wrong, where, and what to do."""
    t = terminal(context)
    (d,) = _with_client(t, "dlq", Selection((sequence,)).letters)
    tries = f", {count(d.attempts, 'attempt')}" if d.attempts > 1 else ""
    lines = [
        f"dead letter {d.sequence}  {d.topology}/{d.node}  {d.time.isoformat(timespec='seconds')}{tries}",
        f"{d.reason}[{d.code}]  {d.message}",
        f"  fix: {d.fix}",
        f"run    {d.run}",
        f"event  {d.event.subject} {d.event.sequence or ''}  {d.event.id}",
        *(f"{name:<6} {value}" for name, value in (("key", d.event.key), ("session", d.event.session)) if value),
        f"data   {_readable(d.event.data)}",
        *([d.traceback.rstrip()] if d.traceback else []),
    ]
    t.emit(d.as_dict(traceback=True), "\n".join(lines))


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
    dry_run: DryRunOption = False,
    everything: AllOption = False,
) -> None:
    """Run the events again from where they failed: the same event ids, the same runs."""
    from dspex.engine.cli.terminal.arguments import pairs
    from dspex.engine.client import letters

    t, fields = terminal(context), pairs(set_ or [])
    selection = Selection(tuple(sequences or ()), topology, node, reason, since)
    selection.check("redrive", everything)

    async def main(c: Client) -> int:
        found = await selection.letters(c)
        if dry_run:
            return _would(t, found, "redriven")
        changed = [_changed(d, edit, fields) for d in found]  # all of them first: an editor may be left with an error
        with t.progress("redrive", len(found)) as bar:
            for d, data in zip(found, changed):
                await letters.redrive(c.bus, c.app, [d], data=data)
                bar.advance()
        return len(found)

    done = _with_client(t, "dlq", main)
    if not dry_run:
        t.emit({"redriven": done}, f"{count(done, 'dead letter')} redriven: their events run again")


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
        found = await selection.letters(c)
        return _would(t, found, "dropped") if dry_run else await letters.drop(c.bus, c.app, found)

    done = _with_client(t, "dlq", main)
    if not dry_run:
        t.emit({"dropped": done}, f"{count(done, 'dead letter')} dropped")


def _would(t: Terminal, found: Sequence[DeadLetter], what: str) -> int:
    _table(t, found)
    t.note(f"{count(len(found), 'dead letter')} would be {what}; nothing was done")
    return len(found)


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


def _edited(d: DeadLetter) -> Any:
    """What a person makes of the data; None where they left it alone. Raises ConfigError (DX120)."""
    raw = isinstance(d.event.data, bytes)
    before = d.event.data.decode(errors="replace") if raw else orjson.dumps(d.event.data, option=orjson.OPT_INDENT_2).decode()
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
        return orjson.loads(after)
    except orjson.JSONDecodeError as e:
        raise ConfigError(f"what was saved is not JSON: {e}: nothing was redriven", code="DX120", fix="edit it again") from e
