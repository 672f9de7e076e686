"""`dspex approvals`: see what waits for a person's decision, and decide."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dspex.bus.errors import ConfigError, RunError
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal, to_json
from dspex.engine.client.following import hidden

if TYPE_CHECKING:
    from dspex.engine.client.status.approvals import Approval

_WIDEST = 100  # characters of what is shown in a table
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As approvals ls shows it, or 6 digits or more of its end.")]
NoteOption = Annotated[str, typer.Option("--note", help="Why: for the audit, and for the dead letter of what is rejected.")]


def ls(
    context: typer.Context,
    topology: Annotated[str | None, typer.Option("--topology", help="Only of this topology.")] = None,
    since: Annotated[str | None, duration("--since", help="Only what came in the last 1h, 7d, …")] = None,
) -> None:
    """List what waits for a decision, the oldest first."""
    t = terminal(context)
    if not t.run(_listed(t, topology, since)) and not t.json:
        t.note("nothing waits for a decision")


async def _listed(t: Terminal, topology: str | None, since: str | None) -> int:
    from dspex.bus.settings.duration import seconds

    after = datetime.now(UTC) - timedelta(seconds=seconds(since)) if since is not None else None
    number, rows = 0, list[dict[str, object]]()
    async with client(t, "approvals") as c:
        secrets = await hidden.secrets_of(c)
        async for each in c.approvals(topology):
            if after is None or each.since >= after:
                number, one = number + 1, hidden.approval(secrets, each)
                if t.json:
                    t.emit(one.as_dict())
                else:
                    rows.append(_row(one))
    if rows:
        t.table(rows, {name: name for name in ("id", "since", "node", "due", "shown")}, wrap="shown")
    return number


def _row(one: Approval) -> dict[str, object]:
    text = to_json(one.shown)
    return {
        "id": one.id,
        "since": _local(one.since),
        "node": f"{one.topology}/{one.node}",
        "due": _local(one.due) if one.due is not None else "",
        "shown": text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…",
    }


def _local(time: datetime) -> str:
    return time.astimezone().strftime("%d %b %H:%M:%S")


def show(context: typer.Context, id: IdArgument) -> None:
    """Print what waits: what is shown of it, the whole event, and until when."""
    t = terminal(context)
    one = t.run(_found(t, id))
    lines = [
        f"approval {one.id}  {one.topology}/{one.node}",
        f"since  {one.since.isoformat(timespec='seconds')}",
        *([f"due    {one.due.isoformat(timespec='seconds')}"] if one.due is not None else []),
        f"shown  {to_json(one.shown)}",
        f"data   {to_json(one.event.data)}",
        f"run    {one.event.run}",
        *(f"{name:<6} {value}" for name, value in (("key", one.event.key), ("session", one.event.session)) if value),
        f"digest {one.digest}",
    ]
    t.emit(one.as_dict(event=True), *lines)


async def _found(t: Terminal, id: str) -> Approval:
    from dspex.engine.client.status.approvals import find

    async with client(t, "approvals") as c:
        one, secrets = await find(c.bus, c.app, id), await hidden.secrets_of(c)
    if one is None:
        fix = "dspex approvals ls shows what waits"
        raise RunError(f"nothing waits for a decision as {id}", code="DX626", fix=fix)
    return hidden.approval(secrets, one)


def accept(context: typer.Context, id: IdArgument, note: NoteOption = "") -> None:
    """Let it go on."""
    _decide(terminal(context), id, "accept", None, note)


def reject(context: typer.Context, id: IdArgument, note: NoteOption = "") -> None:
    """Make it a dead letter, with the note."""
    _decide(terminal(context), id, "reject", None, note)


def edit(
    context: typer.Context,
    id: IdArgument,
    fields: Annotated[list[str], typer.Argument(metavar="K=V…", help="Fields to change: k=v or k:=json.")],
    note: NoteOption = "",
) -> None:
    """Let it go on with other values of some fields."""
    from dspex.engine.cli.terminal.arguments import pairs

    t, changed = terminal(context), pairs(fields)
    if not changed:
        raise ConfigError("edit changes fields, and none is named", code="DX105", fix="dspex approvals edit ID amount:=10")
    _decide(t, id, "accept", changed, note)


def _decide(t: Terminal, id: str, decision: Literal["accept", "reject"], changed: dict[str, Any] | None, note: str) -> None:
    async def main() -> None:
        async with client(t, "approvals") as c:
            await c.decide(id, decision, edit=changed, note=note)

    t.run(main())
    how = " with other fields" if changed else ""
    t.emit({"approval": id, "decision": decision}, f"{'accepted' if decision == 'accept' else 'rejected'}{how}: {id}")
