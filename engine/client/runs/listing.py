"""Which runs there are: the events of sources, the latest first, with what has become of each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from math import inf
from typing import Final, Literal, get_args

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, RunNotFound, TopologyError
from dspex.bus.message import id_time, run_of
from dspex.bus.port import Bus
from dspex.bus.settings.duration import Duration, seconds
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.client.following.backwards import backwards, by_begin
from dspex.engine.client.following.follower import Follower
from dspex.engine.client.following.many import histories
from dspex.engine.client.following.progress import PartitionId, RunInfo
from dspex.engine.client.following.running import open_runs, tables_now
from dspex.engine.client.runs import kept
from dspex.engine.client.runs.history import history
from dspex.engine.client.runs.info import info_of
from dspex.engine.graph.manifest import Manifest
from dspex.engine.log.positions import pages, sequence_before
from dspex.engine.log.tables import Tables

RunStatus = Literal["running", "done", "failed", "cancelled"]
TOGETHER: Final = 100  # runs that are looked at in one pass through the logs
_OPEN: Final = 1000  # the same of runs that are not done: of those little is read
_GRAIN: Final = 0.002  # seconds: ids tell milliseconds
_LAST: Final = "@last"


async def listed(
    bus: Bus,
    app: str,
    manifests: Mapping[str, Manifest],
    *,
    topology: str | None = None,
    status: RunStatus | None = None,
    since: float = 0.0,
    limit: int = 100,
    before: str | None = None,
) -> AsyncIterator[RunInfo]:
    """Runs, the latest first. `since`: seconds since the epoch. `before`: a full id; only those that began before that run.

    Raises TopologyError (DX235) for one that is not applied, RunNotFound, ConfigError (DX105) for another status.
    """
    if status not in (None, *get_args(RunStatus)):
        raise ConfigError(f"status={status!r} is none", code="DX105", fix=f"one of {', '.join(get_args(RunStatus))}")
    until = _begin_of(before)
    beside = [info for info in (await kept.infos(bus, app)).values() if since <= info.started.timestamp() < until]
    if topology is not None and topology not in {*manifests, *(info.topology for info in beside)}:
        fix = did_you_mean(topology, sorted(manifests), "none is applied")
        raise TopologyError(f"there is no topology {topology!r}", code="DX235", fix=fix)
    tables = await tables_now(bus, app, manifests) if status == "running" else {}
    if status == "running":
        ids = open_runs(bus, app, manifests, since, tables)
    elif status in ("failed", "cancelled"):
        ids = _failed(bus, app, since)
    else:
        ids = latest(bus, manifests, topology, since, until=until if topology is None else inf)
    if before is not None:
        ids = _behind(ids, before, until)
    if status == "running":
        ways = _running(bus, app, manifests, topology, ids, limit, tables)
    elif status in ("failed", "cancelled"):
        ways = _each(bus, app, manifests, topology, ids)
    else:
        ways = _all(bus, app, manifests, ids, limit)
    async for info in _merged(ways, [info for info in beside if topology in (None, info.topology)]):
        if limit and status in (None, info.status):
            yield info
            limit -= 1
        if not limit:
            return


async def _merged(ways: AsyncIterator[RunInfo], beside: Sequence[RunInfo]) -> AsyncIterator[RunInfo]:
    """Runs of the logs, and those that are in none, the latest first."""
    left = deque(beside)
    async for info in ways:
        while left and left[0].started >= info.started:
            yield left.popleft()
        if all(info.id != one.id for one in beside):
            yield info
    for info in left:
        yield info


def _begin_of(before: str | None) -> float:
    """When a run began; never, for None. Raises RunNotFound for what is no full id."""
    if before is None:
        return inf
    if (began := id_time(before)) is None:
        raise RunNotFound(f"{before!r} is no full id of a run", run=before, fix="dspex runs ls --json prints full ids")
    return began.timestamp()


async def _behind(ids: AsyncIterator[str], before: str, until: float) -> AsyncIterator[str]:
    """Of runs in the order of `latest` those behind one of them, which may be gone."""
    there = False
    async for run in ids:
        began = id_time(run)
        if there or (began is not None and began.timestamp() < until):
            yield run
        there = there or run == before


async def _all(
    bus: Bus, app: str, manifests: Mapping[str, Manifest], ids: AsyncIterator[str], limit: int
) -> AsyncIterator[RunInfo]:
    """All runs, some at a time."""
    some: list[str] = []
    async for run in ids:
        some.append(run)
        if len(some) == min(limit, TOGETHER):
            async for info in _looked_at(bus, app, manifests, some):
                yield info
            some.clear()
    async for info in _looked_at(bus, app, manifests, some):
        yield info


async def _failed(bus: Bus, app: str, since: float) -> AsyncIterator[str]:
    """The runs that have dead letters, whatever others there are."""
    if (info := await bus.stream(subjects.stream(app))) is None:
        return
    start, found = await sequence_before(bus, info, since) + 1, set[str]()
    async for page in pages(bus, info.name, [subjects.dead_pattern(app)], start=start):
        found |= {message.headers.get(subjects.RUN, "") for message in page}
    began = {run: at.timestamp() for run in found if (at := id_time(run)) is not None}
    for run in sorted(began, key=lambda run: (began[run], run), reverse=True):
        if began[run] < since:
            return
        yield run


async def _each(
    bus: Bus, app: str, manifests: Mapping[str, Manifest], topology: str | None, ids: AsyncIterator[str]
) -> AsyncIterator[RunInfo]:
    """Runs of a topology, one by one."""
    async for run in ids:
        if (told := await _told(bus, app, manifests, topology, run)) is not None:
            yield told


async def _running(
    bus: Bus,
    app: str,
    manifests: Mapping[str, Manifest],
    topology: str | None,
    ids: AsyncIterator[str],
    limit: int,
    tables: Mapping[PartitionId, Tables],
) -> AsyncIterator[RunInfo]:
    """The runs of which anything is open, whatever others there are. Of what the tables have the begin alone is read."""
    some = list[str]()

    async def told() -> AsyncIterator[RunInfo]:
        found = await histories(bus, app, manifests, some, now=tables, gone=True)
        for run in some:
            if (past := found.get(run)) is not None and topology in (None, *past.topologies):
                yield info_of(past, app, manifests)
        some.clear()

    async for run in ids:
        some.append(run)
        if len(some) == min(limit, _OPEN):
            async for info in told():
                yield info
    async for info in told():
        yield info


async def _told(bus: Bus, app: str, manifests: Mapping[str, Manifest], topology: str | None, run: str) -> RunInfo | None:
    """What is known of a run; None where no event of it came to the topology, or its source does not keep it any more."""
    try:
        past = await history(bus, app, manifests, run)
    except RunNotFound:
        return None
    return info_of(past, app, manifests) if topology is None or topology in past.topologies else None


async def _looked_at(bus: Bus, app: str, manifests: Mapping[str, Manifest], runs: Sequence[str]) -> AsyncIterator[RunInfo]:
    if not runs:
        return
    follower = Follower(bus, app, manifests, runs)
    await follower.look()
    for run in runs:
        yield follower.runs[run].info(manifests)


async def latest(
    bus: Bus,
    manifests: Mapping[str, Manifest],
    topology: str | None = None,
    since: float = 0.0,
    beside: Iterable[RunInfo] = (),
    until: float = inf,
) -> AsyncIterator[str]:
    """The ids of runs, the latest first: of what the sources of a topology have, or of all. `beside`: runs in no log.
    `until`: only of events that were stored by then.

    A source that takes outputs has events of runs that began earlier: each is named where it began.
    """
    where = dict.fromkeys(
        (stream, applied.subject(source))
        for name, applied in manifests.items()
        for source, stream in applied.streams.items()
        if topology in (None, name)
    )
    ways = [*(_events(bus, stream, subject, since, until) for stream, subject in where), _in_order(beside)]
    async for run in by_begin(ways, since):
        yield run


async def _in_order(infos: Iterable[RunInfo]) -> AsyncIterator[tuple[float, str]]:
    for info in infos:
        yield info.started.timestamp(), info.id


async def _events(bus: Bus, stream: str, subject: str, since: float, until: float) -> AsyncIterator[tuple[float, str]]:
    """When each message of a subject was stored, and its run; the latest first."""
    if (info := await bus.stream(stream)) is not None:
        last = await sequence_before(bus, info, until + _GRAIN) if until < inf else None
        async for message in backwards(bus, info, subject, since=since, last=last):
            yield message.time, run_of(stream, info.created, message)


async def named(bus: Bus, app: str, manifests: Mapping[str, Manifest], name: str) -> str:
    """The id of the run that is called `@last`, or `@last-1` for the one before it, and so on. Raises RunNotFound."""
    back = name.removeprefix(_LAST).removeprefix("-") or "0"
    if not name.startswith(_LAST) or not back.isdecimal():
        raise RunNotFound(f"{name!r} names no run", run=name, fix="@last, @last-1, …, or an id: dspex runs ls")
    left = int(back)
    async for run in latest(bus, manifests, beside=(await kept.infos(bus, app)).values()):
        if not left:
            return run
        left -= 1
    raise RunNotFound(f"there are not so many runs: {name}", run=name, fix="dspex runs ls shows those there are")


def moment_of(since: Duration | datetime | None) -> float:
    """A time, or how long ago, in seconds since the epoch; 0 for None."""
    if since is None:
        return 0.0
    return since.timestamp() if isinstance(since, datetime) else time.time() - seconds(since)
