"""`dspex replay` of certain runs: by their logs where no call may be made, else by the engine, in memory."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import typer

from dspex.bus.errors import ConfigError, Divergence, DspexError, RecordingIncomplete
from dspex.engine.cli.terminal import log
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from dspex.engine.again.answering import CallsSoFar, Mode
    from dspex.engine.again.files import FileCrew
    from dspex.engine.cli.runs.choice import ReplayChoice
    from dspex.engine.cli.terminal.progress import Bar
    from dspex.engine.client.client import Client
    from dspex.engine.client.runs.diff import Replay, StepDiff
    from dspex.engine.graph.graph import Graph
    from dspex.engine.replay.topology import Replayed

T = TypeVar("T")
PrintedAs: TypeAlias = Literal["text", "markdown"]
MOST: Final = 10  # files, or runs, that are named
OLDER: Final = "recorded by an older way of naming builds: it does not say with which files its functions ran"

JOBS = Annotated[
    int | None,
    typer.Option("--jobs", metavar="N", min=1, max=256, help="Processes; one for each processor if there is much."),
]


class RepeatedRuns(NamedTuple):
    """What came of it. `logs`: what its partitions said. `differ`: of several, the files or runs that do, with the first
    difference of each. `what`: what these are.
    """

    name: str
    found: Replay
    logs: Replayed | None = None
    differ: Sequence[tuple[str, StepDiff]] = ()
    what: Literal["file", "run"] = "file"

    def as_dict(self, mode: Mode) -> dict[str, Any]:
        """As `--json` has it."""
        found, diff = self.found, self.found.diff
        said: dict[str, Any] = {key: getattr(found, key) for key in ("same", "runs", "served", "live", "tokens", "cost")}
        said |= {"mode": mode, "diverged": vars(found.diverged) if found.diverged is not None else None, "what": self.name}
        said |= {"differences": len(diff.steps), "steps": [vars(step) for step in diff.steps], "without": found.without}
        said |= {"used": {"tokens": list(diff.tokens), "cost": list(diff.cost)}}
        said |= {"builds": self.builds, "secrets": sorted(found.secrets)}
        said |= {"running": list(found.running)} if found.running else {}
        lacking = [{self.what: name, "code": e.code, "error": e.message} for name, e in found.incomplete.items()]
        said |= {"incomplete": lacking} if lacking else {}
        return said | ({"files" if self.what == "file" else "differing": self._rows()} if self.differ else {})

    @property
    def builds(self) -> dict[str, tuple[str, str]]:
        """What is another one than when the runs were recorded."""
        return {**self.found.builds, **(self.logs.builds if self.logs is not None else {})}

    def _rows(self) -> list[dict[str, Any]]:
        return [{self.what: name, **vars(first)} for name, first in self.differ]

    @property
    def head(self) -> str:
        """What was done, in a line."""
        found = self.found
        spent = f", {found.tokens:,} tokens" if found.live else ""
        return f"{self.name}  {count(found.runs, 'run')}, {count(found.served, 'call')} read back, {found.live:,} made{spent}"

    def lines(self) -> Iterator[str]:
        """As people read it."""
        yield self.head
        yield from other_builds(self.builds)
        if self.found.secrets:
            yield f"without the values of secret fields: {', '.join(sorted(self.found.secrets))}"
        yield from self.found.undone()
        yield from (
            f"differs {one}: at {step.step}{f' ({step.field})' if step.field else ''}" for one, step in self.differ[:MOST]
        )
        if len(self.differ) > MOST:
            yield f"… and {len(self.differ) - MOST:,} more"
        if self.found.without:
            yield f"begins without state: {self.found.without}"
        yield from self.found.diff.lines()
        if running := self.found.running:
            more = ", …" if len(running) > MOST else ""
            yield f"left out, not over: {', '.join(f'…{run[-8:]}' for run in running[:MOST])}{more}"
        if self.found.same:
            yield "same"

    def markdown(self) -> str:
        """For a review: which differ, and the differences of the first."""
        rows = [f"| `{name}` | `{first.step}` | {first.field or ''} |" for name, first in self.differ]
        table = ["", f"| {self.what} | first difference | field |", "|---|---|---|", *rows] if rows else []
        undone = ["", *(f"- {line}" for line in self.found.undone())] if self.found.incomplete else []
        return "\n".join([self.head, *undone, *table, "", self.found.diff.markdown()])


def repeated(
    t: Terminal,
    what: ReplayChoice,
    target: str | None,
    mode: Mode,
    how: PrintedAs,
    jobs: int | None = None,
    *,
    exit_code: bool = False,
) -> None:
    """Do what was chosen again, and print what comes of it. Where it differs: raises Divergence if no call may be made, and
    exits with 1 for `exit_code`. Raises RecordingIncomplete where runs were left out that are not over; that, or DecodeError,
    where some of several are damaged or incomplete.
    """
    if what.file is not None and mode == "strict":
        told = _of_files(t, what, target, jobs)
    else:
        told = t.run(quietly(t, _repeated(t, what, target, mode)))
    if how == "markdown":
        t.document(told.markdown())
    else:
        t.emit(told.as_dict(mode), *told.lines())
    if lacking := told.found.incomplete:
        raise incomplete(told.name, lacking, len(told.differ), told.what)
    if not told.found.same and mode == "strict":
        where = f"in {count(len(told.differ), told.what)}" if told.differ else count(len(told.found.diff.steps), "time")
        raise Divergence(f"the replay of {told.name} differs {where}")
    if not told.found.same and exit_code:
        raise typer.Exit(1)
    if running := told.found.running:
        fix = "wait for them (dspex runs wait), and replay it again"
        raise RecordingIncomplete(f"{count(len(running), 'run')} of {told.name} not over, and left out", fix=fix)


def incomplete(name: str, lacking: Mapping[str, DspexError], differ: int, what: str) -> DspexError:
    """The error of several that were done again but for some: that of one of them alone; of those that lack something first.
    `differ`: how many do.
    """
    found = [*lacking.values()]
    error = next((one for one in found if isinstance(one, RecordingIncomplete)), found[0])
    more = f"; {differ:,} differ" if differ else ""
    why = f"{count(len(found), what)} of {name} cannot be replayed{more}; first: {found[0].message}"
    return type(error)(why, code=error.code, fix=error.fix)


async def quietly(t: Terminal, wanted: Coroutine[Any, Any, T]) -> T:
    """Do something without what an engine logs meanwhile, unless more was asked for."""
    t.settings()  # which say how is logged
    with nullcontext() if t.verbosity else log.without("dspex.engine"):
        return await wanted


def check_jobs(jobs: int | None, *, possible: bool) -> None:
    """Raise ConfigError where several processes are asked for, and one does it."""
    if jobs not in (None, 1) and not possible:
        why = "several processes do strict replays of files and of topologies, and publish nothing"
        raise ConfigError(why, code="DX105", fix="leave --jobs out")


def code_of(t: Terminal, target: str | None) -> list[Graph]:
    """The code of a target, or of dspex.toml, as an engine would run it. Raises TopologyError, ConfigError."""
    from dspex.engine.again.code import code
    from dspex.engine.cli.topology.targets import load

    return code(t.settings().app, t.settings(), load(t, [target] if target is not None else None))


def _of_files(t: Terminal, what: ReplayChoice, target: str | None, jobs: int | None) -> RepeatedRuns:
    """Do what files say again, without a server: of many in several processes, which are forked before anything else begins."""
    from dspex.engine.again.files import crew_for, files_at

    files, graphs = files_at(str(what.file)), code_of(t, target)
    with crew_for(files, graphs, jobs) as crew:
        return t.run(quietly(t, _files(t, what, None, files, graphs, "strict", crew)))


async def _repeated(t: Terminal, what: ReplayChoice, target: str | None, mode: Mode) -> RepeatedRuns:
    from dspex.engine.again import replays
    from dspex.engine.again.files import files_at

    files, graphs = files_at(what.file) if what.file is not None else [], code_of(t, target)
    async with client(t, "replay") as c:
        if files:
            return await _files(t, what, c, files, graphs, mode)
        if what.run is not None:
            run = c.run(what.run)
            with calls_made(t, "replay", (await run.info()).calls) as told:
                return RepeatedRuns(run.id, *await replays.of_one(c, run, graphs, mode, told))
        runs, running = await _runs(c, what)
        with t.progress("replay", len(runs)) as bar:
            differ, told_of = _differing(bar)
            found = await replays.of_many(c, runs, running, graphs, mode, told_of)
            return RepeatedRuns(str(what), found, differ=differ, what="run")


async def _files(
    t: Terminal,
    what: ReplayChoice,
    c: Client | None,
    files: Sequence[Path],
    graphs: Sequence[Graph],
    mode: Mode,
    crew: FileCrew | None = None,
) -> RepeatedRuns:
    """Do the runs of files again, one file or those of a folder."""
    from dspex.engine.again.files import of_files
    from dspex.engine.again.replays import of_file
    from dspex.engine.client.runs.export import load

    if what.file == files[0]:
        file = load(files[0])
        with calls_made(t, "replay", len(file.calls)) as told:
            return RepeatedRuns(str(what.file), await of_file(c, file, graphs, mode, told))
    with t.progress("replay", len(files)) as bar:
        differ, told_of = _differing(bar)
        return RepeatedRuns(str(what.file), await of_files(c, files, graphs, mode, told_of, crew=crew), differ=differ)


def _differing(bar: Bar) -> tuple[list[tuple[str, StepDiff]], Callable[[Replay, Replay, object], None]]:
    """Which of several differ, as far as it is known; and what is to be told of each."""
    differ: list[tuple[str, StepDiff]] = []

    def told(so_far: Replay, last: Replay, which: object) -> None:
        bar.advance(1, f"{so_far.served:,} read back, {so_far.live:,} made, {so_far.tokens:,} tokens")
        if last.diverged is not None:
            differ.append((str(which), last.diverged))

    return differ, told


async def _runs(c: Client, what: ReplayChoice) -> tuple[list[str], list[str]]:
    """The runs that were chosen which are over, and those that are not. Raises RunNotFound, TopologyError."""
    from dspex.engine.again.replays import by_end
    from dspex.engine.client.following.many import histories

    if not what.whole:
        past = await histories(c.bus, c.app, await c.manifests(), await what.runs(c))
        return [run for run, one in past.items() if one.done], [run for run, one in past.items() if not one.done]
    until = None if isinf(what.until) else datetime.fromtimestamp(what.until, tz=UTC)
    return await by_end(c, str(what.topology), what.since, until)


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


def other_builds(builds: Mapping[str, tuple[str, str]]) -> list[str]:
    """What is another one than when it was written."""
    from dspex.engine.log.build import FILES, names_no_files

    older, found = names_no_files(builds), sorted(builds.items())
    said = [
        f"other build: {name}: {then[:40] or '-'} then, {now[:40] or '-'} now"
        for name, (then, now) in found
        if not older or name != FILES
    ]
    return [*said, *([OLDER] if older else [])]
