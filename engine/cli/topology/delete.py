"""`dspex delete`: remove a topology with its state; with the last one, all that the application has on the server."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.terminal import Terminal, terminal


def delete(
    context: typer.Context,
    topology: Annotated[str, typer.Argument(metavar="TOPOLOGY", help="Its name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the name again.")] = False,
) -> None:
    """Remove a topology: state, work, records, dead letters. With the last one go the application's streams, sinks too."""
    t = terminal(context)
    if not yes and not sys.stdin.isatty():
        why = f"delete {topology} removes what cannot be brought back"
        raise ConfigError(why, code="DX136", fix=f"dspex delete {topology} --yes")
    if not yes and typer.prompt(f"Type the name of the topology to delete it from {t.settings().app}", err=True) != topology:
        raise typer.Abort
    t.run(_deleted(t, topology))


async def _deleted(t: Terminal, topology: str) -> None:
    from dspex.engine.hosting.delete import delete as remove

    async with client(t, "delete") as c:
        done = await remove(c.bus, c.app, topology)
    row = {
        "topology": topology,
        "whole": done.whole,
        "messages": done.messages,
        "removed": list(done.removed),
        "kept": list(done.kept),
        "others": list(done.others),
    }
    what = ", ".join(done.removed) if done.whole else f"{done.messages:,} messages; sinks and streams stay"
    yours = [f"{name} stays, as it is a copy of yours: nats stream rm {name}" for name in done.kept]
    yours += [f"{name} stays, since others made it" for name in done.others]
    t.emit(row, f"deleted {topology}: {what}", *yours)
