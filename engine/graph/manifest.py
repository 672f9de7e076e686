"""The manifest of a topology: what was applied, and what must never change by accident.

It fixes the id of each stage by its source and the number of its partitions, so that logs and records find their owner
whatever else changes. Each version is a key of its own, and all are kept: a claim names its version, and an older engine
refuses. The bucket takes one value of a key. The server's own answers go wherever who asks says, and no permission limits
that; so a publisher can have one put under a key to come, where it is passed over, but under none that is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import orjson
import structlog

from dspex.bus import subjects
from dspex.bus.codecs.checking import checker
from dspex.bus.errors import DecodeError, Fenced, TopologyError
from dspex.bus.port import Bucket, Bus
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.hops import new_id, with_hops
from dspex.engine.graph.nodes import MOST_PARTITIONS, Call, CallNode, HopNode, SourceNode

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_log = structlog.get_logger("dspex.engine")


@dataclass(frozen=True)
class Manifest:
    """Attributes:
    version: counts changes.
    digest: of the graph.
    stages: source subject → (stage id, partitions).
    streams: source subject → stream that it is read from.
    starts: source subject → sequence behind which its stage began, fixed when it was applied first.
    calls: recorded operator → {"spec", "pool", "timeout"}, so that a client can ask a deployed node.
    sinks: subjects (patterns) of sinks. copies: of those that have a public copy, the stream that is it.
    retention: seconds that what is not needed any more is kept.
    renamed: old name → new name of nodes, since the first version: rows of the log and stored events keep old ones.
    hops: operator that gives events another owner → (id of the stage behind it, partitions). Those that meet have one stage.
    dropped: of these, those that the topology has no more.
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

    @property
    def partitions(self) -> dict[str, int]:
        """Stage → how many partitions it has, of all stages that there ever were."""
        return dict((*self.stages.values(), *self.hops.values()))

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
            and 0 < self.retention < float("inf")
        )


class _Versions(NamedTuple):
    """The manifests of one topology.

    known: those that engines wrote, the latest last. strange: keys of what reads like one and no engine wrote, with the reason.
    taken: keys of what is none at all, with the reason; such a version there will never be.
    """

    known: list[Manifest]
    strange: dict[str, str]
    taken: dict[str, str]


def _versions(topology: str, items: Mapping[str, bytes]) -> _Versions:
    """Versions are counted without a hole: what lies behind one, no engine wrote. `items`: key → value."""
    found = _Versions([], {}, {})
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


async def _all(bucket: Bucket, topology: str = "", before: int = 0) -> dict[str, _Versions]:
    """By topology. What no engine wrote is logged, in one line for each topology: anybody can have much of it put there."""
    items: dict[str, dict[str, bytes]] = {}
    wanted = {subjects.manifest_key(topology, number) for number in range(1, before)}
    for key, (value, _) in (await bucket.items(subjects.manifest_prefix(topology))).items():
        if not before or key in wanted:
            items.setdefault(subjects.manifest_of(key), {})[key] = value
    found = {topology: _versions(topology, values) for topology, values in items.items()}
    for versions in found.values():
        strangers = {**versions.strange, **versions.taken}
        for key, why in list(strangers.items())[:1]:
            _log.error("a manifest is passed over", key=key, why=why, others=len(strangers) - 1)
    return found


def _refused(strange: Mapping[str, str]) -> TopologyError:
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
    found = await _all(bucket, topology, before)
    for versions in found.values():
        if whole and versions.strange:
            raise _refused(versions.strange)
    return {topology: versions.known for topology, versions in found.items() if versions.known}


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


async def write(
    bucket: Bucket, graph: Graph, streams: Mapping[str, str], starts: Mapping[str, int], *, again: bool = False
) -> Manifest:
    """The manifest of `graph`, stored as a new version if it differs from the last. Raises TopologyError.

    Args:
        streams: source subject → stream.
        starts: source subject → first position, for a source that is new.
        again: whether a version that was applied before, and then replaced, may be applied again.
    """
    while True:
        versions, strange, taken = (await _all(bucket, graph.name)).get(graph.name, _Versions([], {}, {}))
        before = versions[-1] if versions else None
        if strange and (before is None or before.digest != graph.digest):
            # A version may be lost. Who runs what was applied last can go on, as its logs say what it is.
            raise _refused(strange)
        if not again:
            _is_not_old(graph, versions)
        after = _next(graph, streams, starts, before)
        if after == before:
            return after
        if strange:
            raise _refused(strange)
        while subjects.manifest_key(graph.name, after.version) in taken:
            after = replace(after, version=after.version + 1)
        try:
            await bucket.put(subjects.manifest_key(graph.name, after.version), after.pack(), revision=0)
        except Fenced:
            continue  # another engine applied at the same moment: look at what it wrote
        return after


def _is_not_old(graph: Graph, versions: Sequence[Manifest]) -> None:
    """Refuse a version that another one has replaced: an old process that restarts must not undo what was applied since."""
    if not versions or graph.digest == versions[-1].digest:
        return
    for old in versions:
        if old.digest == graph.digest:
            raise TopologyError(
                f"{graph.name}: this is version {old.version} ({old.digest[:8]}), and version {versions[-1].version} "
                f"({versions[-1].digest[:8]}) is applied",
                code="DX238",
                fix="start the version that is applied; or go back to this one: dspex apply",
            )


def _next(graph: Graph, streams: Mapping[str, str], starts: Mapping[str, int], before: Manifest | None) -> Manifest:
    stages = dict(before.stages) if before else {}
    begun = dict(before.starts) if before else {}
    behind = dict(before.hops) if before else {}
    for node in graph.sources:
        was = graph.renamed_from.get(node.name, "")
        if node.name not in stages and was in stages:
            stages[node.name], begun[node.name] = stages.pop(was), begun.pop(was, 0)
        elif node.name not in stages:
            stages[node.name], begun[node.name] = (new_id(stages, behind), node.source.partitions), starts.get(node.name, 0)
    behind = with_hops(graph, behind, stages)
    if before is not None:
        _compare(graph, before, stages)
    new = Manifest(
        version=before.version if before else 1,
        digest=graph.digest,
        stages=stages,
        streams=dict(streams),
        calls={n.name: _call(n.call) for n in graph.calls},
        sinks=tuple(n.sink.pattern for n in graph.sinks),
        starts=begun,
        retention=graph.retention,
        renamed=_renamed(graph, before.renamed if before else {}),
        copies={n.sink.pattern: n.sink.stream for n in graph.sinks if n.sink.stream is not None},
        hops=behind,
        dropped=tuple(sorted(behind.keys() - {n.name for n in graph.hops})),
    )
    if before is not None and new != before:
        return replace(new, version=before.version + 1)
    return new


def _renamed(graph: Graph, before: Mapping[str, str]) -> dict[str, str]:
    """Old names of nodes, with those that they have now. A name that a node has today is no old one."""
    step = graph.renamed
    names = {old: step.get(new, new) for old, new in before.items()} | step
    return {old: new for old, new in names.items() if old not in graph.nodes}


def _call(call: Call) -> dict[str, object]:
    spec: dict[str, object] = orjson.loads(
        orjson.dumps(call.spec)
    )  # through JSON, as it is stored, so that the two compare equal
    return {"spec": spec, "pool": call.pool, "timeout": call.timeout}


def _compare(graph: Graph, before: Manifest, stages: Mapping[str, tuple[str, int]]) -> None:
    """Refuse changes that would strand state and were not declared. `stages`: as they will be."""
    for node in graph.sources:
        count = stages[node.name][1]
        if node.source.partitions != count:
            raise TopologyError(
                f"{graph.name}: {node.name} was applied with {count} partitions and now has {node.source.partitions}",
                code="DX234",
                fix=f"keep partitions={count}: a key stays in its partition for good",
            )
    now = {n.name for n in graph.nodes.values() if isinstance(n, CallNode | HopNode | SourceNode)}
    declared = set(graph.renamed_from.values()) | set(graph.drop)
    hops = before.hops.keys() - before.dropped
    gone = [name for name in (*before.calls, *before.streams, *sorted(hops)) if name not in now and name not in declared]
    if gone:
        raise TopologyError(
            f"{graph.name}: node {gone[0]!r} of the applied version is gone, and nothing said about its open calls",
            code="DX232",
            fix=f'Topology(…, renamed_from={{"<new name>": "{gone[0]}"}}) if it has another name now, or drop=["{gone[0]}"]',
        )
