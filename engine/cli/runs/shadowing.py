"""`dspex shadow`: what a candidate does otherwise with what comes in now, while nothing of it is sent anywhere."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.runs.again.built import CANDIDATE, entered
from dspex.engine.cli.runs.judging import candidate
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.graph.graph import Graph
    from dspex.engine.judge.shadow import Shadow, Shadowed, ShadowSoFar, ShadowTerms

EVERY = 10.0  # seconds between two lines that say how far it is


def shadow(
    context: typer.Context,
    target: Annotated[str | None, typer.Argument(metavar="[TARGET]", help="The candidate: module:attr or a YAML file.")] = None,
    folder: CANDIDATE = None,
    sample: Annotated[str, typer.Option("--sample", metavar="5%", help="Of how many runs; which ones, their ids say.")] = "5%",
    until: Annotated[str | None, typer.Option("--until", metavar="TIME|DUR", help="When it ends; else with ^C.")] = None,
    topology: Annotated[
        str | None, typer.Option("--topology", metavar="NAME", help="Whose runs, where there are several.")
    ] = None,
    fields: Annotated[str | None, typer.Option("--fields", metavar="A,B", help="Only these fields count.")] = None,
    budget: Annotated[int | None, typer.Option("--budget", min=0, max=10**15, metavar="TOKENS", help="Then it ends.")] = None,
    at_once: Annotated[int, typer.Option("-c", min=1, max=16, help="So many runs together.")] = 1,
) -> None:
    """Do a sample of the runs that end now again with a candidate, and compare. No sink is written; nothing waits for it."""
    from dspex.engine.judge.shadow import ShadowTerms

    t = terminal(context)
    if folder is not None:
        entered(t, folder)
    terms = ShadowTerms(_share(sample), fields.split(",") if fields is not None else None, budget=budget, at_once=at_once)
    left = _left(until)
    graphs, name = candidate(t, target, topology)
    followed: list[Shadow] = []
    with suppress(KeyboardInterrupt):  # the way to end it
        t.run(_shadowed(t, name, graphs, terms, left, followed))
    for one in followed:
        t.emit(one.so_far.as_dict(), *_summary(one.so_far))


async def _shadowed(
    t: Terminal, topology: str, graphs: list[Graph], terms: ShadowTerms, left: float | None, followed: list[Shadow]
) -> None:
    from dspex.engine.cli.terminal.log import without
    from dspex.engine.judge.shadow import Shadow

    with without("dspex.engine"):
        async with client(t, "shadow") as c:
            followed.append(one := Shadow(c, topology, graphs, terms))
            await one.begin()
            t.emit({"kind": "begun", "topology": topology, "share": terms.share})
            if not t.json:
                t.note(f"shadow of {topology}: {100 * terms.share:g} % of the runs that begin from now on; ^C ends it")
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await _told(t, one)


async def _told(t: Terminal, one: Shadow) -> None:
    said, trouble = time.monotonic(), ""
    async for found in one.follow():
        if found is not None:
            t.emit(found.as_dict(), *_lines(found))
        if one.trouble != trouble and (trouble := one.trouble):
            t.note(f"cannot look now, and goes on: {trouble}")
        if time.monotonic() - said > EVERY and not t.json:
            said = time.monotonic()
            t.note(_spent(one.so_far))


def _lines(found: Shadowed) -> list[str]:
    """For people: what differs, and what was left out."""
    if found.diff is None:
        return [f"skipped {found.run}  {found.why}"]
    if found.diff.same:
        return []
    return [f"differs {found.run}", *(f"  {line}" for line in found.diff.lines() if line[:1] in "!+- ")]


def _summary(found: ShadowSoFar) -> list[str]:
    from dspex.engine.cli.runs.again.repeated import other_builds

    skipped = [f"skipped {times:,}: {why}" for why, times in found.skipped.most_common()]
    waiting = [f"{found.waiting:,} of them had not ended, or were not compared yet"] if found.waiting else []
    return [
        _spent(found),
        *other_builds(found.builds),
        *skipped,
        *waiting,
        *([f"stopped: {found.stopped}"] if found.stopped else []),
    ]


def _spent(found: ShadowSoFar) -> str:
    runs = f"{count(found.seen, 'run')}, {found.sampled:,} sampled, {found.compared:,} compared, {found.differ:,} differ"
    return f"{runs}  {found.served:,} calls read back, {found.called:,} made  {found.tokens:,} tokens  ${found.cost:.4f}"


def _share(text: str) -> float:
    """As `5%` or `0.05`. Raises ConfigError (DX105)."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ConfigError(f"--sample {text!r} is no share", code="DX105", fix="more than 0, and at most 100%: 5%, or 0.05")
    return share


def _left(until: str | None) -> float | None:
    """Seconds from now on. Raises ConfigError (DX105)."""
    from dspex.bus.codecs.times import moment
    from dspex.bus.settings.duration import seconds

    if until is None:
        return None
    with suppress(ConfigError):
        return seconds(until)
    try:
        return max(0.0, moment(until).timestamp() - time.time())
    except (ValueError, OverflowError):
        fix = "a duration (1h), or a time as 2026-01-31T12:00:00Z"
        raise ConfigError(f"--until {until!r} does not say when", code="DX105", fix=fix) from None
