"""Membership spreads partitions over engines. Who owns a partition is decided by its commit log alone, so a mistake here costs
time and never an event.

Each engine has one key: its heartbeat, which lists what it owns, and is written before it claims. Every engine reads the keys
of all, and computes by itself who should run what (assignment.py). It gives up what should move, and claims what it should
run once nobody who lives lists it. An engine is dead when its process is gone (on the same machine), or when its key has not
changed for five heartbeats by the clock of who looks, so the clocks of machines need not agree.

Of engines with different versions of a topology only those with the newest run it: the others hand their partitions over.

Whoever may write into the bucket can say that an engine lives. So one heartbeat that is not followed by another counts for no
longer than one of our own, and a version counts only where its manifest is stored.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, NamedTuple, Protocol

import orjson

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.local.processes import is_dead
from dspex.bus.port import Bucket
from dspex.bus.seldom import logger
from dspex.bus.serving.server_clock import ServerClock
from dspex.bus.settings.tables import MOST_HEARTBEAT
from dspex.engine.hosting.assignment import Member, StagePartition, assign

_log = logger("dspex.engine")
SILENT: Final = 5  # heartbeats without which an engine counts as dead
IDLE: Final = 10  # heartbeats after which an engine that owns nothing of what falls to it is named
FORGOTTEN: Final = 600.0  # seconds after which the key of a silent engine is removed; until then `status` shows it


class PartitionRunner(Protocol):
    """What runs a stage."""

    def own(self, index: int) -> None:
        """Claim a partition and run it."""
        ...

    def release(self, index: int) -> None:
        """Commit what was taken of a partition, and give it up."""
        ...


@dataclass
class _Seen:
    """The key of another engine.

    `said`: what is in it, read once: those of engines that are gone stay for a while. `silent`: seconds for which it was seen
    unchanged. `beats`: it was seen to change. `idle`: heartbeats for which it owned nothing of what falls to it. `strange`: the
    versions that it named, and nobody has applied.
    """

    revision: int
    said: tuple[Mapping[str, Any], _Said | None]
    silent: float = 0.0
    beats: bool = False
    idle: int = 0
    strange: Mapping[str, int] = field(default_factory=dict)


class _Said(NamedTuple):
    """A heartbeat. `versions`: topology → version of the manifest that the engine runs it with."""

    engine: str
    heartbeat: float
    versions: Mapping[str, int]
    owns: frozenset[StagePartition]


@dataclass
class Membership:
    """This engine among the others.

    Args:
        describe: what the heartbeat says besides. heartbeat: seconds between two.

    Attributes:
        listed: the partitions that this engine owns or is about to claim.
        replaced: which topologies others run in a newer version, so that this engine runs nothing of them; "" for none.
        idle: which engines live and own nothing of what falls to them, so that nobody runs it; "" for none.
    """

    bucket: Bucket
    manifests: Bucket
    engine: str
    heartbeat: float
    clock: ServerClock
    describe: Callable[[], dict[str, Any]]
    listed: set[StagePartition] = field(default_factory=set)
    replaced: str = ""
    idle: str = ""
    _applied: set[tuple[str, int]] = field(default_factory=set)  # topologies and versions whose manifest is stored
    _versions: dict[str, int] = field(default_factory=dict)
    _stages: dict[tuple[str, str], tuple[int, PartitionRunner]] = field(default_factory=dict)
    _leaving: set[StagePartition] = field(default_factory=set)  # given up, and not yet committed
    _others: dict[str, _Seen] = field(default_factory=dict)
    _looked: float = 0.0  # when the keys were last read
    _found: tuple[Any, Mapping[StagePartition, str]] | None = None  # what was assigned last, and from what
    _owns: tuple[set[StagePartition], orjson.Fragment] | None = None  # what is listed, and the same as JSON
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, topology: str, version: int, stage: str, count: int, runner: PartitionRunner) -> None:
        """A stage that this engine can run, with a version of the topology's manifest."""
        self._stages[topology, stage] = (count, runner)
        self._versions[topology] = version

    def remove(self, topology: str, stage: str) -> None:
        """Nothing is left to do of a stage."""
        del self._stages[topology, stage]
        self.listed = {part for part in self.listed if part[:2] != (topology, stage)}

    async def run(self) -> None:
        """Send heartbeats and follow the others until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            until = loop.time() + self.heartbeat
            try:
                await asyncio.gather(self.once(), self.clock.ask())
                while await self._changes(until):
                    await self._say()  # what is given up is taken by others at their next heartbeat
            except BusError as e:
                _log.debug("no heartbeat now, trying again", why=e.message)  # the engine goes on: the log decides
            await asyncio.sleep(until - loop.time())

    async def _changes(self, until: float) -> bool:
        """Wait until the list changes; False at the time `until`."""
        try:
            async with asyncio.timeout_at(until):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    async def once(self) -> None:
        """One heartbeat: say what is owned, give up what should move, claim what is free. Raises BusError."""
        if not self._looked:  # who starts says so first: of two that start at once, one sees the other
            await self._say()
        _, living = await asyncio.gather(self._say(), self._living())  # at once: over a slow wire each takes long
        members = self._of_newest(await self._with_applied(living))
        assigned = self._assigned(members)
        self._look_for_idle(members, assigned)
        wanted = {part for part, engine in assigned.items() if engine == self.engine}
        leaving = sorted(self.listed - wanted - self._leaving)
        for (topology, stage), parts in groupby(leaving, lambda part: (part.topology, part.stage)):
            _log.info("hands over", topology=topology, stage=stage, partitions=[part.number for part in parts])
        for part in leaving:
            self._leaving.add(part)
            self._runner(part).release(part.number)
        taken = {part for engine, member in members.items() if engine != self.engine for part in member.owns}
        free = sorted(wanted - self.listed - taken)
        if free:
            await self._claim(free)

    def _assigned(self, members: Mapping[str, Member]) -> Mapping[StagePartition, str]:
        now = ({stage: count for stage, (count, _) in self._stages.items()}, members)
        if self._found is None or self._found[0] != now:  # else as at the heartbeat before: with many stages it takes a while
            self._found = (now, assign(*now))
        return self._found[1]

    async def _claim(self, free: list[StagePartition]) -> None:
        self.listed.update(free)
        try:
            await self._say()
        except BusError:
            self.listed.difference_update(free)
            raise
        for part in free:
            self._runner(part).own(part.number)

    def _runner(self, part: StagePartition) -> PartitionRunner:
        return self._stages[part.topology, part.stage][1]

    async def _say(self) -> None:
        self._changed.clear()
        said = {**self.describe(), "heartbeat": self.heartbeat, "versions": self._versions}
        if self._owns is None or self._owns[0] != self.listed:  # with many stages encoding it takes a while
            owns = orjson.dumps(list(map(list, sorted(self.listed))))
            self._owns = set(self.listed), orjson.Fragment(owns)
        said["owns"] = self._owns[1]
        await self.bucket.put(subjects.member_key("engine", self.engine), orjson.dumps(said))

    # -- the others ------------------------------------------------------------------------------------------------
    async def _with_applied(self, living: Mapping[str, _Said]) -> dict[str, _Said]:
        """The same, without newer versions that nobody has applied. Raises BusError."""
        found: dict[str, _Said] = {}
        for engine, said in living.items():
            newer = {t: v for t, v in said.versions.items() if v > self._versions.get(t, v)}
            strange = {t: v for t, v in newer.items() if not await self._is_applied(t, v)}
            seen = self._others.get(subjects.member_key("engine", engine))
            if seen is not None and strange and strange != seen.strange:
                seen.strange = strange
                _log.error("a heartbeat names what nobody applied, and does not count there", engine=engine, versions=strange)
            found[engine] = said._replace(versions={t: v for t, v in said.versions.items() if t not in strange})
        return found

    async def _is_applied(self, topology: str, version: int) -> bool:
        if (topology, version) not in self._applied:
            if await self.manifests.get(subjects.manifest_key(topology, version)) is None:
                return False
            self._applied.add((topology, version))
        return True

    def _look_for_idle(self, members: Mapping[str, Member], assigned: Mapping[StagePartition, str]) -> None:
        """Name those that do not take what falls to them: they look alive, and nobody runs their partitions."""
        given, named = Counter(assigned.values()), list[str]()
        for key, seen in self._others.items():
            engine = key.partition(".")[2]
            rests = given[engine] and not any(part in members[engine].owns for part, to in assigned.items() if to == engine)
            seen.idle = seen.idle + 1 if rests else 0
            if seen.idle >= IDLE:
                named.append(f"{engine} owns nothing of the {given[engine]} partitions that fall to it")
            if seen.idle == IDLE:
                _log.error("an engine does not take what falls to it", engine=engine, partitions=given[engine])
        self.idle = "; ".join(named)

    def _of_newest(self, living: Mapping[str, _Said]) -> dict[str, Member]:
        """The engines that live, with the topologies of which nobody runs a newer version."""
        newest = Counter[str]()
        for said in living.values():
            newest |= Counter(said.versions)
        old = [f"{t} (version {newest[t]}, this engine has {v})" for t, v in self._versions.items() if v < newest[t]]
        replaced, before = f"others run a newer version of {', '.join(old)}" if old else "", self.replaced
        self.replaced = replaced
        if replaced and replaced != before:
            _log.error("hands over for good", why=replaced, fix="start this engine with the topology as it is applied now")
        able = {e: frozenset(t for t, v in said.versions.items() if v == newest[t]) for e, said in living.items()}
        return {engine: Member(able[engine], said.owns) for engine, said in living.items()}

    async def _living(self) -> dict[str, _Said]:
        """What the engines that live have said, this one too. Removes the keys of those that are gone."""
        now = asyncio.get_running_loop().time()
        # Heartbeats that were missed by us, such as while no server was there, are no silence of theirs.
        passed, self._looked = min(now - self._looked, 2 * self.heartbeat), now
        found = {self.engine: _Said(self.engine, self.heartbeat, self._versions, frozenset(self.listed))}
        keys = await self.bucket.items("engine")
        self._others = {key: seen for key, seen in self._others.items() if key in keys}
        own = subjects.member_key("engine", self.engine)
        for key, (value, revision) in keys.items():
            if key == own:
                continue  # with many partitions reading it takes a while
            seen = self._look_at(key, value, revision, passed)
            raw, said = seen.said
            if said is None or key != subjects.member_key("engine", said.engine):
                continue
            if is_dead(raw) or seen.silent > FORGOTTEN:
                await self.bucket.delete(key)
            elif seen.silent < SILENT * min(said.heartbeat, MOST_HEARTBEAT if seen.beats else self.heartbeat):
                found[said.engine] = said
        return found

    def _look_at(self, key: str, value: bytes, revision: int, passed: float) -> _Seen:
        seen = self._others.get(key)
        if seen is None:
            seen = self._others[key] = _Seen(revision, _said(value))
        if seen.revision != revision:
            seen.revision, seen.said, seen.silent, seen.beats = revision, _said(value), 0.0, True
        else:
            seen.silent += passed
        return seen

    # -- what happens to partitions ----------------------------------------------------------------------------------
    def revoked(self, topology: str, stage: str, index: int) -> None:
        """A partition is not this engine's any more: fenced, given up, or not to be claimed now."""
        part = StagePartition(topology, stage, index)
        self.listed.discard(part)
        self._leaving.discard(part)
        self._changed.set()

    async def leave(self) -> None:
        """Remove the key, so that nobody has to wait. Raises BusError."""
        self.listed.clear()
        await self.bucket.delete(subjects.member_key("engine", self.engine))


def _said(value: bytes) -> tuple[Mapping[str, Any], _Said | None]:
    """What a heartbeat says, as it is and as it is used here; None for what is none."""
    try:
        raw = orjson.loads(value)
        owns = frozenset(StagePartition(str(topology), str(stage), int(index)) for topology, stage, index in raw["owns"])
        versions = {str(topology): int(version) for topology, version in raw["versions"].items()}
        return raw, _Said(str(raw["engine"]), float(raw["heartbeat"]), versions, owns)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return {}, None
