"""Files of runs, done again: one, or all of a folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeAlias

from dspex.bus.errors import DecodeError, Divergence, RecordingIncomplete
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
GivenFile: TypeAlias = str | PathLike[str] | RunFile


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
    whole: bool = True,
    **options: Any,
) -> Replay:
    """The replay of several files, one after the other, each with state that begins empty. Of several, one that needs a call
    which may not be made differs there, one that is damaged or incomplete is named, and the others are done; of one, that
    raises Divergence, RecordingIncomplete, DecodeError.

    `told`: after each, of all so far, of that one, and which it was. `whole`: see `repeat`. `options`: of `of_file`.
    """
    now = builds_now(graphs)
    found, known = Replay(True, 0, 0, 0, 0, None, NO_DIFFERENCE), dict[str, Unchanged]()
    strict = mode == "strict" and client is None
    async for one, file in _read(given):
        try:
            if isinstance(file, DecodeError):
                raise file
            name = file.info.topology
            if name not in known:
                known[name] = Unchanged(of_run(graphs, name, file.root.data))
            last = as_it_was(file, known[name], now, whole=whole) if strict else None
            last = last or await of_file(client, file, graphs, mode, now=now, whole=whole, **options)
        except Divergence as error:
            if len(given) == 1 or isinstance(file, DecodeError):
                raise
            last = ended_at(file, error)
        except (RecordingIncomplete, DecodeError) as error:
            if len(given) == 1:
                raise
            last = undone(str(one), error)
        found = together(found, last)
        told(found, last, one)
    return found


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


def replayed(graphs: Sequence[Graph], given: GivenFile, harmless: Collection[str]) -> Replay:
    """See `Driver.replay`. No event loop may run in this thread."""
    files = [given] if isinstance(given, RunFile) else files_at(given)
    return asyncio.run(of_files(None, files, graphs, "strict", harmless=harmless, whole=False))
