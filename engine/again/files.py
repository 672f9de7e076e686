"""Files of runs, done again: one, or all of a folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeAlias

from dspex.bus.errors import ConfigError, DecodeError, Divergence, RecordingIncomplete
from dspex.bus.local.crew import Crew, processes
from dspex.engine.again.answering import Mode
from dspex.engine.again.code import builds_now, of_run
from dspex.engine.again.replays import NO_DIFFERENCE, as_it_was, ended_at, of_file, together, undone
from dspex.engine.again.unchanged import Unchanged
from dspex.engine.client.client import Client
from dspex.engine.client.runs.diff import Replay
from dspex.engine.client.runs.export import MAKE, RunFile, load
from dspex.engine.graph.graph import Graph

ENDS: Final = ".jsonl"
_AHEAD: Final = 16  # files that are read at once
_MANY: Final = 100  # files from which on several processes do them: to fork those takes as long as some twenty files
_SHARE: Final = 32  # files that a process gets at once
GivenFile: TypeAlias = str | PathLike[str] | RunFile
FileCrew: TypeAlias = "Crew[Sequence[GivenFile], list[tuple[GivenFile, Replay]]]"


def files_at(path: str | PathLike[str]) -> list[Path]:
    """The file at a path; of a folder all files of runs in it, by their names. Raises DecodeError where there is none."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    if not (found := sorted(path.rglob(f"*{ENDS}"), key=str)):
        raise DecodeError(f"{path} has no file of a run, *{ENDS}", fix=MAKE)
    return found


def readable_at(path: str | PathLike[str]) -> list[RunFile]:
    """The files of runs at a path, but those of a folder that cannot be read. Raises DecodeError where none can."""
    found = [_loaded(file) for file in files_at(path)]
    read = [one for one in found if isinstance(one, RunFile)]
    for error in [one for one in found if isinstance(one, DecodeError)] if not read else ():
        raise error
    return read


async def of_files(
    client: Client | None,
    given: Sequence[GivenFile],
    graphs: Sequence[Graph],
    mode: Mode,
    told: Callable[[Replay, Replay, GivenFile], None] = lambda so_far, last, file: None,
    *,
    crew: FileCrew | None = None,
    whole: bool = True,
    **options: Any,
) -> Replay:
    """The replay of several files, one after the other, each with state that begins empty. Of several, one that needs a call
    which may not be made differs there, one that is damaged or incomplete is named, and the others are done; of one, that
    raises Divergence, RecordingIncomplete, DecodeError.

    `told`: after each, of all so far, of that one, and which it was. `crew`: who does shares of them, see `crew_for`.
    `whole`: see `repeat`. `options`: of `of_file`.
    """
    found = Replay(True, 0, 0, 0, 0, None, NO_DIFFERENCE)
    if crew is not None:
        size = min(_SHARE, -(-len(given) // (2 * crew.count)))
        async with aclosing(crew.done(_shares(given, size))) as coming:
            async for files in coming:
                for one, last in files:
                    found = together(found, last)
                    told(found, last, one)
        return found
    async for one, last in _Doing(client, graphs, mode, whole, options).each(given):
        found = together(found, last)
        told(found, last, one)
    return found


async def _shares(given: Sequence[GivenFile], size: int) -> AsyncIterator[Sequence[GivenFile]]:
    for at in range(0, len(given), size):
        yield given[at : at + size]


def crew_for(
    given: Sequence[GivenFile],
    graphs: Sequence[Graph],
    jobs: int | None,
    *,
    threads: int = 1,
    whole: bool = True,
    **options: Any,
) -> AbstractContextManager[FileCrew | None]:
    """Who does shares of files strictly: processes, where there are many files, or where it is said how many; else nobody.

    `jobs`: so many processes; None: one for each processor. `threads`: see `processes`. `options`: of `of_files`.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs={jobs} does nothing", code="DX105", fix="1, or more")
    count = min(processes(jobs, threads=threads), len(given)) if jobs is not None or len(given) >= _MANY else 1
    if count < 2:
        return nullcontext()
    return Crew(_Doing(None, graphs, "strict", whole, options).share, count)


class _Doing:
    """How files are done again, one after the other."""

    def __init__(
        self, client: Client | None, graphs: Sequence[Graph], mode: Mode, whole: bool, options: Mapping[str, Any]
    ) -> None:
        self._client, self._graphs, self._whole, self._options = client, graphs, whole, options
        self._mode: Mode = mode
        self._now, self._known = builds_now(graphs), dict[str, Unchanged]()
        self._strict = mode == "strict" and client is None

    async def each(self, given: Sequence[GivenFile], *, one: bool | None = None) -> AsyncGenerator[tuple[GivenFile, Replay]]:
        """The replay of each. `one`: it is the only one, and raises what it cannot."""
        one = len(given) == 1 if one is None else one
        async for path, file in _read(given):
            try:
                yield path, await self._replay(file)
            except Divergence as error:
                if one or isinstance(file, DecodeError):
                    raise
                yield path, ended_at(file, error)
            except (RecordingIncomplete, DecodeError) as error:
                if one:
                    raise
                yield path, undone(str(path), error)

    async def share(self, given: Sequence[GivenFile]) -> list[tuple[GivenFile, Replay]]:
        """The replays of several of many. What is said of those that are the same is the same, but for the first one."""
        found, first = list[tuple[GivenFile, Replay]](), True
        async for path, last in self.each(given, one=False):
            brief = last.diff.same and not first
            first = first and not last.runs
            diff = replace(NO_DIFFERENCE, tokens=last.diff.tokens, cost=last.diff.cost) if brief else last.diff
            found.append((path, replace(last, diff=diff)))
        return found

    async def _replay(self, file: RunFile | DecodeError) -> Replay:
        if isinstance(file, DecodeError):
            raise file
        name = file.info.topology
        if name not in self._known:
            self._known[name] = Unchanged(of_run(self._graphs, name, file.root.data))
        last = as_it_was(file, self._known[name], self._now, whole=self._whole) if self._strict else None
        options: dict[str, Any] = {"now": self._now, "whole": self._whole, **self._options}
        return last or await of_file(self._client, file, self._graphs, self._mode, **options)


async def _read(given: Sequence[GivenFile]) -> AsyncIterator[tuple[GivenFile, RunFile | DecodeError]]:
    """Files with what they say, or why they cannot be read. Some are read before the first of them is done again: by turns,
    reading and doing push one another out of the processor's cache, which costs a tenth of both.
    """
    for start in range(0, len(given), _AHEAD):
        some, files = given[start : start + _AHEAD], list[RunFile | DecodeError]()
        for one in some:
            await asyncio.sleep(0)  # else ^C is heard when all are done: nothing here asks anything of the loop
            files.append(one if isinstance(one, RunFile) else _loaded(one))
        for found in zip(some, files):
            await asyncio.sleep(0)
            yield found


def _loaded(path: str | PathLike[str]) -> RunFile | DecodeError:
    try:
        return load(path)
    except DecodeError as error:
        return error


def replayed(
    graphs: Sequence[Graph], given: GivenFile, harmless: Collection[str], jobs: int | None = None, *, threads: int = 1
) -> Replay:
    """See `Driver.replay`. No event loop may run in this thread. `threads`: see `processes`."""
    files = [given] if isinstance(given, RunFile) else files_at(given)
    with crew_for(files, graphs, jobs, threads=threads, whole=False, harmless=harmless) as crew:
        return asyncio.run(of_files(None, files, graphs, "strict", crew=crew, harmless=harmless, whole=False))
