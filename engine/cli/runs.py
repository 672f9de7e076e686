"""`dspex runs forget`: make what belongs to a session unreadable for good."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.terminal import Terminal, terminal


def forget(
    context: typer.Context,
    session: Annotated[str, typer.Option("--session", metavar="ID", help="Whose runs: the id that was published with them.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the session again.")] = False,
) -> None:
    """Delete the key that seals what belongs to a session: nobody can read it any more, though it is still seen that it was."""
    t = terminal(context)
    if not yes and not sys.stdin.isatty():
        why = f"to forget {session} makes unreadable what cannot be brought back"
        raise ConfigError(why, code="DX136", fix="add --yes")
    if not yes and typer.prompt(f"Type the id of the session to have {t.settings().app} forget it", err=True) != session:
        raise typer.Abort
    t.run(_forgotten(t, session))


async def _forgotten(t: Terminal, session: str) -> None:
    async with client(t, "runs") as c:
        keys = await c.forget(session=session)
    said = "its key is deleted; processes that have used it lately go on with it for a minute" if keys else "it has no key"
    t.emit({"session": session, "keys": keys}, f"{'forgotten' if keys else 'nothing to forget'}: {session}: {said}")
