"""`dspex runs score` and `scores`: what somebody says of a run later, and what was said of each program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dspex.engine.cli.runs.scored import credits_of, said
from dspex.engine.cli.runs.verbs import RUN, TOPOLOGY
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.options import duration, finite
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.client.runs.judged.scores import Score


def score(
    context: typer.Context,
    run: RUN,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What is said: helpful, correct, …")],
    value: Annotated[
        float, typer.Argument(metavar="VALUE", callback=finite, help="A number; more is better. Below 0 behind --.")
    ],
    node: Annotated[str | None, typer.Option("--node", metavar="N", help="Only of this operator, or step.")] = None,
    note: Annotated[str, typer.Option("--note", metavar="T", help="Why.")] = "",
) -> None:
    """Say how good a run is, or what an operator answered in it. It is credited to the version of the program that answered."""
    t = terminal(context)
    found = t.run(_scored(t, run, name, value, node, note))
    t.emit(found.as_dict(), f"{found.run}  {said(found)}  {_credit(found)}".rstrip())


async def _scored(t: Terminal, run: str, name: str, value: float, node: str | None, note: str) -> Score:
    async with client(t, "runs") as c:
        return await c.score(run, name, value, node=node, note=note)


def scores(
    context: typer.Context,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Only of this run, one by one.")] = None,
    topology: TOPOLOGY = None,
    since: Annotated[str | None, duration("--since", help="Only what was said in the last 1h, 7d, …")] = None,
) -> None:
    """Print what was said of each program, by version and model: how often, and the mean. Of a run: each score."""
    t = terminal(context)
    found = t.run(_found(t, run, topology, since))
    if run is not None:
        for one in found:
            t.emit(one.as_dict(), f"{_day(one)}  {said(one)}  by {one.who}")
    elif rows := credits_of(found):
        t.table(rows, {name: name for name in rows[0]})
    if not found and not t.json:
        t.note("no scores: dspex runs score RUN NAME VALUE")


async def _found(t: Terminal, run: str | None, topology: str | None, since: str | None) -> list[Score]:
    async with client(t, "runs") as c:
        return [one async for one in c.scores(run, topology=topology, since=since)]


def _credit(one: Score) -> str:
    if not one.answered:
        return "credited to nobody: it made no call"
    who = "; ".join(" ".join(word for word in (a.node, a.program, a.lm) if word) for a in one.answered[:3])
    more = f", and {count(len(one.answered) - 3, 'other')}" if len(one.answered) > 3 else ""
    return f"credited to {who}{more}"


def _day(one: Score) -> str:
    return one.time.astimezone().strftime("%d %b %H:%M:%S")
