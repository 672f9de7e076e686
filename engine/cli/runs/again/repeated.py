"""`dspex replay` of certain runs: by their logs where no call may be made, else by the engine, in memory."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from math import isinf
from typing import TYPE_CHECKING, Any, TypeVar

from dspex.bus.errors import Divergence
from dspex.engine.cli.terminal import log
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from dspex.engine.again.answering import CallsSoFar, Mode
    from dspex.engine.cli.runs.choice import ReplayChoice
    from dspex.engine.client.client import Client
    from dspex.engine.client.runs.diff import Replay
    from dspex.engine.graph.graph import Graph
    from dspex.engine.replay.topology import Replayed

T = TypeVar("T")


def repeated(t: Terminal, what: ReplayChoice, target: str | None, mode: Mode) -> None:
    """Do what was chosen again, and print what comes of it. Raises Divergence where it differs, and no call may be made."""
    name, found, logs = t.run(quietly(t, _repeated(t, what, target, mode)))
    said: dict[str, Any] = {key: getattr(found, key) for key in ("same", "runs", "served", "live", "tokens")}
    said |= {"mode": mode, "diverged": vars(found.diverged) if found.diverged is not None else None, "what": name}
    said |= {"differences": len(found.diff.steps), "builds": logs.builds if logs is not None else {}}
    spent = f", {found.tokens:,} tokens" if found.live else ""
    lines = [f"{name}  {count(found.runs, 'run')}, {count(found.served, 'call')} read back, {found.live:,} made{spent}"]
    lines += other_builds(logs) if logs is not None else []
    t.emit(said, *lines, *found.diff.lines(), *(["same"] if found.same else []))
    if not found.same and mode == "strict":
        raise Divergence(f"the replay of {name} differs {count(len(found.diff.steps), 'time')}")


async def quietly(t: Terminal, wanted: Coroutine[Any, Any, T]) -> T:
    """Do something without what an engine logs meanwhile, unless more was asked for."""
    t.settings()  # which say how is logged
    with nullcontext() if t.verbosity else log.without("dspex.engine"):
        return await wanted


def code_of(t: Terminal, target: str | None) -> list[Graph]:
    """The code of a target, or of dspex.toml, as an engine would run it. Raises TopologyError, ConfigError."""
    from dspex.engine.again.code import code
    from dspex.engine.cli.topology.targets import load

    return code(t.settings().app, t.settings(), load(t, [target] if target is not None else None))


async def _repeated(t: Terminal, what: ReplayChoice, target: str | None, mode: Mode) -> tuple[str, Replay, Replayed | None]:
    """What was replayed, what came of it, and what its partitions said."""
    from dspex.engine.again import replays
    from dspex.engine.client.runs.export import load

    file, graphs = load(what.file) if what.file is not None else None, code_of(t, target)
    if file is not None and mode == "strict":
        return str(what.file), await replays.of_file(None, file, graphs, mode), None
    async with client(t, "replay") as c:
        if file is not None:
            with calls_made(t, "replay", len(file.calls)) as told:
                return str(what.file), await replays.of_file(c, file, graphs, mode, told), None
        if what.run is not None:
            run = c.run(what.run)
            with calls_made(t, "replay", (await run.info()).calls) as told:
                found, logs = await replays.of_one(c, run, graphs, mode, told)
            return run.id, found, logs
        runs = await _runs(c, what)
        with t.progress("replay", len(runs)) as bar:

            def told_of(so_far: Replay) -> None:
                bar.advance(1, f"{so_far.served:,} read back, {so_far.live:,} made, {so_far.tokens:,} tokens")

            return str(what), await replays.of_many(c, runs, graphs, mode, told_of), None


async def _runs(c: Client, what: ReplayChoice) -> list[str]:
    """The runs that were chosen, those that are over. Raises RunNotFound, TopologyError."""
    from dspex.engine.again.replays import ended

    if not what.whole:
        return await what.runs(c)
    until = None if isinf(what.until) else datetime.fromtimestamp(what.until, tz=UTC)
    return [run async for run in ended(c, str(what.topology), what.since, until)]


@contextmanager
def calls_made(t: Terminal, label: str, calls: int) -> Generator[Callable[[CallsSoFar], None]]:
    """A bar over the calls of a run."""
    with t.progress(label, calls) as bar:
        seen = 0

        def told(so_far: CallsSoFar) -> None:
            nonlocal seen
            now = so_far.served + so_far.called
            tokens = so_far.usage.input_tokens + so_far.usage.output_tokens
            bar.advance(max(0, now - seen), f"{so_far.served:,} read back, {so_far.called:,} made, {tokens:,} tokens")
            seen = max(seen, now)

        yield told


def other_builds(found: Replayed) -> list[str]:
    """What is another one than when the logs were written."""
    builds = sorted(found.builds.items())
    return [f"other build: {name}: {then[:40] or '-'} then, {now[:40] or '-'} now" for name, (then, now) in builds]
