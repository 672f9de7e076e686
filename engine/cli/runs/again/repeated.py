"""`dspex replay` of certain runs: by their logs where no call may be made, else by the engine, in memory."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from dspex.bus.errors import Divergence
from dspex.engine.cli.terminal import log
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from dspex.engine.again.answering import CallsSoFar, Mode
    from dspex.engine.cli.runs.choice import ReplayChoice
    from dspex.engine.cli.terminal.progress import Bar
    from dspex.engine.client.client import Client
    from dspex.engine.client.runs.diff import Replay, StepDiff
    from dspex.engine.graph.graph import Graph
    from dspex.engine.replay.topology import Replayed

T = TypeVar("T")
MOST: Final = 10  # files that are named


class RepeatedRuns(NamedTuple):
    """What came of it. `logs`: what its partitions said. `differ`: files of a folder that do, with the first difference."""

    name: str
    found: Replay
    logs: Replayed | None = None
    differ: Sequence[tuple[str, StepDiff]] = ()


def repeated(t: Terminal, what: ReplayChoice, target: str | None, mode: Mode) -> None:
    """Do what was chosen again, and print what comes of it. Raises Divergence where it differs, and no call may be made."""
    name, found, logs, differ = t.run(quietly(t, _repeated(t, what, target, mode)))
    said: dict[str, Any] = {key: getattr(found, key) for key in ("same", "runs", "served", "live", "tokens")}
    said |= {"mode": mode, "diverged": vars(found.diverged) if found.diverged is not None else None, "what": name}
    said |= {"differences": len(found.diff.steps), "builds": logs.builds if logs is not None else {}}
    said |= {"files": [{"file": file, **vars(first)} for file, first in differ]} if differ else {}
    spent = f", {found.tokens:,} tokens" if found.live else ""
    lines = [f"{name}  {count(found.runs, 'run')}, {count(found.served, 'call')} read back, {found.live:,} made{spent}"]
    lines += other_builds(logs) if logs is not None else []
    lines += [f"differs {file}: at {one.step}{f' ({one.field})' if one.field else ''}" for file, one in differ[:MOST]]
    lines += [f"… and {len(differ) - MOST:,} more"] if len(differ) > MOST else []
    said |= {"without": found.without}
    lines += [f"begins without state: {found.without}"] if found.without else []
    t.emit(said, *lines, *found.diff.lines(), *(["same"] if found.same else []))
    if not found.same and mode == "strict":
        where = f"in {count(len(differ), 'file')}" if differ else count(len(found.diff.steps), "time")
        raise Divergence(f"the replay of {name} differs {where}")


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


async def _repeated(t: Terminal, what: ReplayChoice, target: str | None, mode: Mode) -> RepeatedRuns:
    from dspex.engine.again import replays
    from dspex.engine.again.files import files_at

    files, graphs = files_at(what.file) if what.file is not None else [], code_of(t, target)
    if files and mode == "strict":
        return await _files(t, what, None, files, graphs, mode)
    async with client(t, "replay") as c:
        if files:
            return await _files(t, what, c, files, graphs, mode)
        if what.run is not None:
            run = c.run(what.run)
            with calls_made(t, "replay", (await run.info()).calls) as told:
                return RepeatedRuns(run.id, *await replays.of_one(c, run, graphs, mode, told))
        runs = await _runs(c, what)
        with t.progress("replay", len(runs)) as bar:
            return RepeatedRuns(str(what), await replays.of_many(c, runs, graphs, mode, lambda so_far: _tell(bar, so_far)))


async def _files(
    t: Terminal, what: ReplayChoice, c: Client | None, files: Sequence[Path], graphs: Sequence[Graph], mode: Mode
) -> RepeatedRuns:
    """Do the runs of files again, one file or those of a folder."""
    from dspex.engine.again.files import of_files
    from dspex.engine.again.replays import of_file
    from dspex.engine.client.runs.export import load

    if what.file == files[0]:
        file = load(files[0])
        with calls_made(t, "replay", len(file.calls)) as told:
            return RepeatedRuns(str(what.file), await of_file(c, file, graphs, mode, told))
    differ: list[tuple[str, StepDiff]] = []
    with t.progress("replay", len(files)) as bar:

        def told_of(so_far: Replay, last: Replay, file: object) -> None:
            _tell(bar, so_far)
            if last.diverged is not None:
                differ.append((str(file), last.diverged))

        return RepeatedRuns(str(what.file), await of_files(c, files, graphs, mode, told_of), differ=differ)


def _tell(bar: Bar, so_far: Replay) -> None:
    bar.advance(1, f"{so_far.served:,} read back, {so_far.live:,} made, {so_far.tokens:,} tokens")


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
