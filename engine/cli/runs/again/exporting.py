"""`dspex runs export`: a run as a file; or many, each as a file of its own, with their histories read in one pass.

What others changed that were committed together with a run, before it, only the code can say: where it is here, and gives what
was committed, that is in files, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dspex.bus.errors import DspexError, RecordingIncomplete
from dspex.engine.cli.runs.again.repeated import code_of
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.following.progress import RunInfo
    from dspex.engine.graph.graph import Graph
    from dspex.engine.graph.manifest import Manifest

_TOGETHER: Final = 500  # runs that are in memory at once
_MANY: Final = 1_000_000  # runs: as many as there are


@dataclass
class ExportedRuns:
    """What came of it. `files`: that were written. `running`: runs that are not over. `left_out`: why others could not be.
    `lacks`: what of their state files do not have.
    """

    files: int = 0
    running: int = 0
    left_out: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)


async def exported_one(t: Terminal, run: str, file: Path) -> RunInfo:
    """Write a run to a file; what is known of it. Raises OSError; what `Run.export` raises."""
    from dspex.bus.local.whole_file import write
    from dspex.engine.again.state import file_of
    from dspex.engine.client.runs.export import written

    graphs = _code(t)
    async with client(t, "runs") as c:
        found = await file_of(c, c.run(run), graphs, same=True)
        await asyncio.to_thread(write, file, found.text or written(found))
    _lacks(t, [found.state.lacks] if found.state.lacks else [])
    return found.info


def _code(t: Terminal) -> list[Graph]:
    """What dspex.toml names; nothing where it names none, or that cannot be read."""
    try:
        return code_of(t, None)
    except DspexError:
        return []


def _lacks(t: Terminal, why: Sequence[str]) -> None:
    if why:
        t.note(f"{count(len(why), 'run')} without all of the state of then: {why[0]}")


async def exported(t: Terminal, folder: Path, topology: str | None, *, failed: bool, since: str | None) -> ExportedRuns:
    """Write runs to files in a folder that is there, `<id>.jsonl`. Raises OSError."""
    found, graphs = ExportedRuns(), _code(t)
    async with client(t, "runs") as c:
        all = [one async for one in c.runs(topology, status="failed" if failed else None, since=since, limit=_MANY)]
        over, applied = [one for one in all if one.status != "running"], await c.manifests()
        found.running = len(all) - len(over)
        with t.progress("export", len(over)) as bar:
            for first in range(0, len(over), _TOGETHER):
                some = over[first : first + _TOGETHER]
                texts = await _texts(c, applied, graphs, some, found)
                await asyncio.to_thread(_written, folder, texts)
                found.files += len(texts)
                bar.advance(len(some))
    _lacks(t, found.lacks)
    return found


async def _texts(
    c: Client, applied: Mapping[str, Manifest], graphs: Sequence[Graph], some: Sequence[RunInfo], found: ExportedRuns
) -> dict[str, bytes]:
    """The files of some runs."""
    from dspex.engine.again.state import exactly
    from dspex.engine.client.following.many import histories
    from dspex.engine.client.runs.export import RunFile, written
    from dspex.engine.client.runs.info import info_of
    from dspex.engine.client.runs.then.builds import builds_of
    from dspex.engine.client.runs.then.state import states_before
    from dspex.engine.client.runs.tree import Tree

    texts, claims = dict[str, bytes](), dict[int, dict[str, str]]()
    for one in some:
        if one.kept and (file := await c.run(one.id).kept()) is not None:
            texts[one.id] = file.text
    pasts = await histories(c.bus, c.app, applied, [one.id for one in some if not one.kept])
    files = {run: RunFile.of(info_of(past, c.app, applied), Tree(past, applied).root, past) for run, past in pasts.items()}
    keys = {run: file.keys for run, file in files.items()}
    then = await states_before(c.bus, c.app, pasts.values(), applied, keys)
    then = await exactly(c, pasts.values(), applied, graphs, then, keys, same=True)
    found.lacks += [state.lacks for state in then.values() if state.lacks]
    for run, past in pasts.items():
        try:
            builds = await builds_of(c.bus, c.app, past, claims)
            texts[run] = written(replace(files.pop(run), state=then.pop(run), builds=builds))
        except RecordingIncomplete as why:
            found.left_out.append(why.message)
    return texts


def _written(folder: Path, texts: Mapping[str, bytes]) -> None:
    from dspex.bus.local.whole_file import write_all

    write_all({folder / f"{run}.jsonl": text for run, text in texts.items()})
