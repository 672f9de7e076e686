"""`dspex diff`: what one run did otherwise than another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dspex.engine.cli.runs.verbs import RUN
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.client.runs.diff import Diff


def diff(
    context: typer.Context,
    a: RUN,
    b: RUN,
    fields: Annotated[str | None, typer.Option("--fields", metavar="A,B", help="Only these fields count.")] = None,
    every: Annotated[bool, typer.Option("--all", help="The steps that are the same, one by one.")] = False,
    how: Annotated[Literal["text", "markdown"], typer.Option("--as", help="How it is printed.")] = "text",
) -> None:
    """Compare two runs, step by step. Exit 1 where they differ."""
    t = terminal(context)
    found = t.run(_compared(t, a, b, fields.split(",") if fields is not None else None))
    if how == "markdown":
        t.document(found.markdown())
    else:
        t.emit(found.as_dict(), *found.lines(every=every), *(["same"] if found.same else []))
    if not found.same:
        raise typer.Exit(1)


async def _compared(t: Terminal, a: str, b: str, fields: list[str] | None) -> Diff:
    async with client(t, "diff") as c:
        return await c.diff(a, b, fields=fields)
