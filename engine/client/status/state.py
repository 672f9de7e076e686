"""What operators with state keep, read from the commit logs: of one key or of all, now or as it was then.

An owner may change it at once. Nothing of the user's code is imported: of a model or a dataclass the fields are shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, TopologyError
from dspex.bus.message import partition_of
from dspex.bus.port import Bus
from dspex.engine.graph import manifest
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.entries import LogAddress, readable
from dspex.engine.log.latest import look
from dspex.engine.log.positions import pages, sequence_before
from dspex.engine.log.reading import changes
from dspex.engine.log.rows import NONE
from dspex.engine.log.tables import Tables

At = int | datetime
"""A sequence of the application's stream, as log entries have it; or a time."""
SKEW: Final = 60.0  # seconds by which the clock of who asks may be ahead of the server's
_AT_ONCE: Final = 8  # partitions that are read at once


class KeyState(NamedTuple):
    """What an operator keeps of a key. `key`: "" where it keeps something for a partition, and none for a key."""

    topology: str
    node: str
    key: str
    partition: int
    value: Any

    def as_dict(self) -> dict[str, Any]:
        """As the CLI prints it."""
        return self._asdict()


class KeptBy(NamedTuple):
    """An operator with state that is applied.

    Attributes:
        op, form: its word, and what its rows look like. names: old name → new name of operators.
        stages: those in which it runs, with their partitions. hops: whether it is behind one, so that keys have partitions.
    """

    topology: str
    node: str
    op: str
    form: str
    names: Mapping[str, str]
    stages: Sequence[tuple[str, int]]
    hops: bool


async def find(bus: Bus, app: str, what: str) -> KeptBy:
    """The operator "topology/node"; "node" is enough where one topology has it. Raises TopologyError (DX235)."""
    applied = await manifest.of_application(bus, app)
    there = {f"{topology}/{node}": (topology, node) for topology, known in applied.items() for node in known.states}
    topology, _, old = what.partition("/")
    names = [what, f"{topology}/{applied[topology].renamed.get(old, old)}"] if topology in applied else [what]
    found = [there[name] for name in names if name in there] or [one for one in there.values() if one[1] == what]
    if len(found) == 1 or (found and what in there):
        return kept_by(*found[0], applied[found[0][0]])
    close = [f"{t}/{n}" for t, n in found] or get_close_matches(what, there, n=3) or _ending_like(what, there.values())
    fix = f"did you mean {' or '.join(close)}?" if close else f"one of: {', '.join(sorted(there)) or 'none is applied'}"
    why = f"more than one topology has an operator {what!r}" if found else f"there is no operator with state {what!r}"
    raise TopologyError(why, code="DX235", fix=fix)


def _ending_like(what: str, there: Collection[tuple[str, str]]) -> list[str]:
    close = get_close_matches(what.rpartition("/")[2], [node for _, node in there], n=3)
    return [f"{topology}/{node}" for topology, node in there if node in close]


def kept_by(topology: str, node: str, applied: Manifest) -> KeptBy:
    """An operator with state of a topology, by its name of today."""
    begins, stages, hops = [node], set[tuple[str, int]](), False
    while begins:
        name = begins.pop()
        if name in applied.hops and name != node:
            stages.add(applied.hops[name])
            hops = True
        elif name in applied.stages:
            stages.add(applied.stages[name])
        else:
            begins += [before for before, _ in applied.nodes.get(name, {}).get("from", ())]
    op = str(applied.nodes.get(node, {}).get("op", ""))
    return KeptBy(topology, node, op, applied.states[node], applied.renamed, sorted(stages), hops)


async def of_key(bus: Bus, app: str, what: str, key: str, at: At | None = None) -> list[KeyState]:
    """What an operator keeps of a key: one, or none; of the key "" one for each partition that has something.

    `at`: as it was then. Raises TopologyError (DX235), RecordingIncomplete, BusError.
    """
    kept = await find(bus, app, what)
    found = _values(kept, await tables_of(bus, app, kept, at, key if key and kept.hops else None))
    return [one for one in found if one.key == key]


async def listing(bus: Bus, app: str, what: str, *, since: datetime | None = None, at: At | None = None) -> list[KeyState]:
    """What an operator keeps of all keys, sorted by key. `since`: only of those that changed since. Raises as `of_key`."""
    kept = await find(bus, app, what)
    found = _values(kept, await tables_of(bus, app, kept, at))
    if since is not None:
        changed = await _changed(bus, app, kept, since)
        found = [one for one in found if one.key in changed]
    return sorted(found, key=lambda one: (one.key, one.partition))


class KeptRead:
    """What an operator keeps of all keys, for who looks again and again: only partitions with new entries are read again."""

    def __init__(self, what: str) -> None:
        self._what, self._turn = what, asyncio.Lock()
        self._of: KeptBy | None = None
        self._read = dict[tuple[str, int], tuple[int, list[KeyState]]]()  # of a partition, with its last entry then

    async def now(self, bus: Bus, app: str) -> list[KeyState]:
        """What it keeps now. Raises as `listing`."""
        async with self._turn:  # who asks at the same time reads nothing twice
            if (kept := await find(bus, app, self._what)) != self._of:
                self._of, self._read = kept, {}
            logs = _logs(app, kept)
            ends = {logs[log]: m.sequence for log, m in (await bus.multi_last(subjects.stream(app), list(logs))).items()}
            new = sorted(where for where, at in ends.items() if where not in self._read or self._read[where][0] != at)
            for stage, index, tables in await _looked_at(bus, app, kept, new, NONE):
                self._read[stage, index] = (ends[stage, index], _values(kept, [(stage, index, tables)]))
            return [one for _, values in self._read.values() for one in values]


async def tables_of(
    bus: Bus, app: str, kept: KeptBy, at: At | None = None, key: str | None = None
) -> list[tuple[str, int, Tables]]:
    """The tables of all partitions that have any, or of that of a key, with stage and partition."""
    sequence = await _sequence(bus, app, at)
    there = [*_logs(app, kept).values()]
    if key is not None:
        there = [(stage, index) for stage, index in there if index == partition_of(key, dict(kept.stages)[stage])]
    if len(there) > 1:  # most of them may never have taken anything
        logs = {subjects.log(app, kept.topology, *one): one for one in there}
        there = [logs[log] for log in sorted(await bus.multi_last(subjects.stream(app), list(logs)))]
    return await _looked_at(bus, app, kept, there, sequence)


def _logs(app: str, kept: KeptBy) -> dict[str, tuple[str, int]]:
    """The logs of the partitions in which an operator runs."""
    return {subjects.log(app, kept.topology, stage, i): (stage, i) for stage, count in kept.stages for i in range(count)}


async def _looked_at(
    bus: Bus, app: str, kept: KeptBy, there: Sequence[tuple[str, int]], sequence: int
) -> list[tuple[str, int, Tables]]:
    """The tables of some partitions, as of a sequence."""
    found: list[tuple[str, int, Tables]] = []
    for first in range(0, len(there), _AT_ONCE):
        some = there[first : first + _AT_ONCE]
        tables = await asyncio.gather(*(look(bus, app, kept.topology, *one, kept.names, at=sequence) for one in some))
        found += [(*one, its) for one, its in zip(some, tables, strict=True)]
    return found


async def _sequence(bus: Bus, app: str, at: At | None) -> int:
    """Raises ConfigError (DX105) for what is still to come."""
    if at is None:
        return NONE
    info = await bus.stream(subjects.stream(app))
    if info is None:
        return NONE
    ahead = at.timestamp() > info.now + SKEW if isinstance(at, datetime) else at > info.last
    if ahead:
        now = datetime.fromtimestamp(info.now, UTC).isoformat(timespec="seconds")
        what = f"{at} lies ahead: the last entry is {info.last:,}, and the server's clock says {now}"
        raise ConfigError(what, code="DX105", node="at", fix="leave it out for what is kept now")
    return await sequence_before(bus, info, at.timestamp()) if isinstance(at, datetime) else at


def _values(kept: KeptBy, found: Sequence[tuple[str, int, Tables]]) -> list[KeyState]:
    from dspex.operators.registry import operators  # what shows state lies beside what writes it

    shown, rows = getattr(operators().get(kept.op), "shown", None), dict[tuple[str, int], dict[str, bytes]]()
    for _, partition, tables in found:
        for (node, key, sub), row in tables.keyed.rows.items():
            if node == kept.node:
                rows.setdefault((key, partition), {})[sub] = row
    values = {at: shown(of, kept.form) if shown is not None else of for at, of in rows.items()}
    return [KeyState(kept.topology, kept.node, *at, value) for at, value in values.items() if value is not None]


async def _changed(bus: Bus, app: str, kept: KeptBy, since: datetime) -> set[str]:
    """The keys of which entries since a time change something."""
    stream, found = subjects.stream(app), set[str]()
    start = await _sequence(bus, app, since) + 1
    logs = _logs(app, kept)
    patterns = [subjects.log(app, kept.topology, stage, "*") for stage, _ in kept.stages]
    async for page in pages(bus, stream, patterns, start=start):
        for message in page:
            entry = readable(message.data)
            if entry is None or entry["kind"] == "claim" or message.subject not in logs:
                continue
            address = LogAddress.of(app, kept.topology, *logs[message.subject])
            rows = (await changes(bus, address, message, entry) or {}).get("keyed", ())
            found |= {key for (node, key, _), _ in rows if kept.names.get(node, node) == kept.node}
    return found
