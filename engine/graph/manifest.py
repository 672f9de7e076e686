"""The manifest of a topology: what was applied, and what must never change by accident.

It fixes the id of each stage by its source and the number of its partitions, so that logs and records find their owner
whatever else changes. Each version is a key of its own, and all are kept: a claim names its version, and an older engine
refuses. The bucket takes one value of a key. The server's own answers go wherever who asks says, and no permission limits
that; so a publisher can have one put under a key to come, where it is passed over, but under none that is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, get_args

import orjson

from dspex.bus import subjects
from dspex.bus.codecs.checking import checker
from dspex.bus.errors import DecodeError, TopologyError
from dspex.bus.port import Bucket, Bus
from dspex.bus.records import Affinity
from dspex.bus.seldom import logger
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.graph.graph import Lane
from dspex.engine.graph.nodes import MOST_PARTITIONS

LATEST: Final = 1e11  # of a time that a lane names, in seconds since the epoch
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_log = logger("dspex.engine")


@dataclass(frozen=True)
class Manifest:
    """Attributes:
    version: counts changes.
    digest: of the graph.
    stages: source subject → (stage id, partitions).
    streams: source subject → stream that it is read from.
    starts: source subject → sequence behind which its stage began, fixed when it was applied first.
    calls: recorded operator → {"spec", "pool", "timeout", "affinity"?}, so that a client can ask a deployed node.
    sinks: subjects (patterns) of sinks. copies: of those that have a public copy, the stream that is it.
    retention: seconds that what is not needed any more is kept.
    renamed: old name → new name of nodes, since the first version: rows of the log and stored events keep old ones.
    hops: operator that gives events another owner → (id of the stage behind it, partitions). Those that meet have one stage.
    dropped: of these, those that the topology has no more.
    nodes: all nodes → {"op", "from", "options"}, so that what changes can be named; see versions.described.
    resets: node → the version that dropped its open calls and its state.
    states: operator with state → what its rows look like, so that another form is not read as this one.
    lanes: name → operators that are built from history, and how; see lanes.py.
    """

    version: int
    digest: str
    stages: Mapping[str, tuple[str, int]]
    streams: Mapping[str, str]
    calls: Mapping[str, Mapping[str, Any]]
    sinks: tuple[str, ...]
    starts: Mapping[str, int] = field(default_factory=dict)
    retention: float = 7 * 86400.0
    renamed: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    hops: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resets: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    lanes: Mapping[str, Lane] = field(default_factory=dict)

    def subject(self, source: str) -> str:
        """What a source reads: its name, but for those of lanes."""
        return next((lane.sources[source] for lane in self.lanes.values() if source in lane.sources), source)

    @property
    def subjects(self) -> list[str]:
        """What the topology reads now."""
        return list(dict.fromkeys(map(self.subject, self.streams)))

    @property
    def partitions(self) -> dict[str, int]:
        """Stage → how many partitions it has, of all stages that there ever were."""
        return dict((*self.stages.values(), *self.hops.values()))

    @property
    def secrets(self) -> frozenset[str]:
        """The names of fields of which nothing is shown."""
        return frozenset[str]().union(*(CallSpec.read(call["spec"]).secrets for call in self.calls.values()))

    @property
    def live(self) -> set[str]:
        """The stages that the topology has now."""
        hops = {id for name, (id, _) in self.hops.items() if name not in self.dropped}
        return hops | {self.stages[source][0] for source in self.streams}

    def pack(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def unpack(cls, data: bytes) -> Manifest:
        """What `pack` wrote. Raises DecodeError."""
        try:
            made = cls(**checker(Manifest).validate_json(data, strict=True))
        except (ValueError, TypeError):
            made = None
        if made is None or not made._is_sound():
            raise DecodeError("the manifest of a topology is damaged")
        return made

    def _is_sound(self) -> bool:
        """Whether it is what `write` makes: whoever may write into the bucket can write anything there."""
        return (
            self.version > 0
            and all(_NAME.fullmatch(id) and 1 <= count <= MOST_PARTITIONS for id, count in self.partitions.items())
            and self.streams.keys() <= self.stages.keys()
            and all(call.keys() >= {"spec", "pool"} and isinstance(call["spec"], dict) for call in self.calls.values())
            and all(isinstance(call["pool"], str) for call in self.calls.values())
            and all(call.get("affinity", "prefer") in get_args(Affinity) for call in self.calls.values())
            and 0 < self.retention < float("inf")
            and all(lane.sources.keys() <= self.streams.keys() for lane in self.lanes.values())
            and all(0 <= at < LATEST for lane in self.lanes.values() for at in (lane.since, lane.boundary))
        )


class Versions(NamedTuple):
    """The manifests of one topology.

    known: those that engines wrote, the latest last. strange: keys of what reads like one and no engine wrote, with the reason.
    taken: keys of what is none at all, with the reason; such a version there will never be.
    """

    known: list[Manifest]
    strange: dict[str, str]
    taken: dict[str, str]


def versions_of(topology: str, items: Mapping[str, bytes]) -> Versions:
    """Versions are counted without a hole: what lies behind one, no engine wrote. `items`: key → value."""
    found = Versions([], {}, {})
    for key, value in sorted(items.items(), key=lambda item: (len(item[0]), item[0])):
        try:
            made = Manifest.unpack(value)
        except DecodeError as e:
            found.taken[key] = e.message
            continue
        before = subjects.manifest_key(topology, made.version - 1)
        if key != subjects.manifest_key(topology, made.version):
            found.strange[key] = f"it says that it is version {made.version}"
        elif found.known and before not in items:
            found.strange[key] = f"there is no version {made.version - 1}"
        elif found.known and not found.known[-1].partitions.items() <= made.partitions.items():
            found.strange[key] = f"it has not all stages of version {found.known[-1].version}, which no version gives up"
        else:
            found.known.append(made)
    return found


async def everything(bucket: Bucket, topology: str = "", before: int = 0) -> dict[str, Versions]:
    """By topology. What no engine wrote is logged, in one line for each topology: anybody can have much of it put there."""
    items: dict[str, dict[str, bytes]] = {}
    wanted = {subjects.manifest_key(topology, number) for number in range(1, before)}
    for key, (value, _) in (await bucket.items(subjects.manifest_prefix(topology))).items():
        if not before or key in wanted:
            items.setdefault(subjects.manifest_of(key), {})[key] = value
    found = {topology: versions_of(topology, values) for topology, values in items.items()}
    for versions in found.values():
        strangers = {**versions.strange, **versions.taken}
        for key, why in list(strangers.items())[:1]:
            _log.error("a manifest is passed over", key=key, why=why, others=len(strangers) - 1)
    return found


def refused(strange: Mapping[str, str]) -> TopologyError:
    key, why = next(iter(strange.items()))
    return TopologyError(
        f"the manifest under the key {key} is none that an engine wrote: {why}",
        code="DX411",
        fix="restore the bucket of the manifests from a backup; or, if nobody applied that version, delete this key of it",
    )


async def read(bucket: Bucket, *, whole: bool = False) -> dict[str, Manifest]:
    """The manifests of all topologies of the application, as applied last. `whole`: see history."""
    return {topology: versions[-1] for topology, versions in (await history(bucket, whole=whole)).items()}


async def history(bucket: Bucket, topology: str = "", *, whole: bool = False, before: int = 0) -> dict[str, list[Manifest]]:
    """All versions of the manifests of one topology, or of all, the latest last. `before`: only those before that version.

    What no engine can have written is left out. With `whole`, TopologyError (DX411) is raised where it reads like a manifest:
    the version before it may be lost.
    """
    found = await everything(bucket, topology, before)
    for versions in found.values():
        if whole and versions.strange:
            raise refused(versions.strange)
    return {topology: versions.known for topology, versions in found.items() if versions.known}


async def applied(bucket: Bucket, topology: str) -> int:
    """The version of a topology that is applied; 0 for none. Raises BusError."""
    found = (await everything(bucket, topology)).get(topology)
    return found.known[-1].version if found is not None and found.known else 0


async def goes_on(bucket: Bucket, topology: str, version: int, at: float) -> bool:
    """Whether a version behind `version` goes on where the sources of that one stopped, at that time. Raises BusError."""
    found = (await everything(bucket, topology)).get(topology)
    behind = [m for m in found.known if m.version > version] if found is not None else []
    return any(lane.boundary == at for m in behind for lane in m.lanes.values())


async def topologies(bus: Bus, app: str) -> set[str]:
    """The topologies of `app`, also those whose manifest is damaged: what removes something must not take them for gone."""
    if not await bus.has("bucket", subjects.applied(app)):
        return set()
    bucket = await bus.bucket(subjects.applied(app))
    return {topology for key in await bucket.items(subjects.manifest_prefix()) if (topology := subjects.manifest_of(key))}


async def of_application(bus: Bus, app: str) -> dict[str, Manifest]:
    """The manifests of all topologies of `app`. Makes no bucket: who only looks leaves no traces."""
    if not await bus.has("bucket", subjects.applied(app)):
        return {}
    return await read(await bus.bucket(subjects.applied(app)))
