"""Who publishes the events of the simulation of time: to one source, or to two whose times run apart.

Each source has its events in the order of time, but for the lateness. Those of the second are some seconds behind, by more than
the lateness: were a watermark to follow the first one alone, they would be late.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Final

from dspex.bus import codecs, subjects
from dspex.bus.codecs.cloud_events import rfc3339
from dspex.bus.errors import NotStored
from dspex.bus.message import derived_id, new_id, partition_of
from dspex.bus.port import NewMessage
from dspex.engine.log.rows import NO_MARK
from simulated.bus import insist
from simulated.source import APP
from simulated.timed import LATENESS, OTHER, SOURCE, YEAR, Timed

if TYPE_CHECKING:
    from timed_simulation import TimedSimulation

STRAY: Final = 60.0  # seconds by which an event may be late
PUT_OFF: Final = 1.5  # seconds
MOST_BEHIND: Final = 30.0  # seconds by which the events of the second source are behind those of the first


class Publisher:
    """Of one run. Event times stand in the headers: now, or a year ago, less up to the lateness."""

    def __init__(self, sim: TimedSimulation) -> None:
        self.sim = sim
        self.root = f"{new_id(sim.server.now)[:15]}000-8000-000000000000"
        self.numbers = Counter[str]()
        self.chance = Random(sim.seed + 3)
        self.behind = {SOURCE: 0.0, OTHER: Random(sim.seed + 4).uniform(2 * LATENESS, MOST_BEHIND)}

    async def publish(self) -> None:
        sim, pause = self.sim, self.sim.random.choice([0.05, 0.4, 3.0])
        sim.ago, rest = sim.random.choice([0.0, YEAR]), sim.random.choice([0.0, 45.0])
        if sim.two:
            await self._begin()
        for number in range(sim.count):
            if number == sim.count // 2:
                await asyncio.sleep(rest)  # the sources are silent, and their watermarks go on by themselves
            key = f"k{sim.random.randrange(sim.keys)}"
            source = self.chance.choice(sim.sources) if sim.two else SOURCE
            late = self.chance.uniform(LATENESS, STRAY) if self.chance.random() < (sim.strays or 0.0) else 0.0
            time = sim.now - self.behind[source] - sim.random.uniform(0.0, LATENESS * 0.9) - late
            waits = self.chance.random() < (sim.put_off or 0.0) and not sim.ago and not self.behind[source]
            await self._give(source, key, round(time, 3), waits=waits)
            await asyncio.sleep(sim.random.expovariate(1 / pause))

    async def _begin(self) -> None:
        """One event for each partition of a source, all of one time, and wait until that is stated.

        A partition without an event has nothing to wait for. While nobody has stated that it has one, the watermark goes by
        the others, and its first events may be late: where the engine dies that has read them, for as long as it takes another
        one to read them again. That is a known limit, and not what is looked for here.
        """
        sim = self.sim
        time = round(sim.now - self.behind[OTHER], 3)
        keys = {partition_of(f"k{i}", sim.partitions): f"k{i}" for i in range(sim.keys)}
        for source in sim.sources:
            for key in keys.values():
                await self._give(source, key, time)
        wanted = {(stage, index) for stage in ("s1", "s2") for index in keys}
        await sim.until(lambda: wanted <= self._stated())

    def _stated(self) -> set[tuple[str, int]]:
        """The partitions of stages of which a watermark was stated."""
        pattern = subjects.time(APP, "timed", "*", "*")
        said = [
            (m.subject.split(".")[-2], codecs.decode(m.data, codecs.MSGPACK))
            for m in self.sim.stored(subjects.stream(APP), pattern)
        ]
        return {(stage, index) for stage, marks in said for index, at in marks.items() if at is not None and at > NO_MARK}

    async def _give(self, source: str, key: str, time: float, *, waits: bool = False) -> None:
        """Publish an event until it is stored. `waits`: it is put off, and its event time is when it is taken."""
        sim = self.sim
        event = Timed(derived_id(self.root, "timed", len(sim.given)), key, self.numbers[key], time, source)
        self.numbers[key] += 1
        body = codecs.encode({"k": key, "n": event.n, "text": f"{event.n} of {key}"})[0]
        headers = {subjects.MESSAGE_ID: event.id, subjects.KEY: key, subjects.TIME: rfc3339(time)}
        if waits:
            headers[subjects.AT] = f"+{PUT_OFF}"
            sim.displaced.add(event.place)
        draft = NewMessage(source, body, headers)
        while True:
            try:
                await insist(lambda: sim.bus.publish(draft))
                break
            except NotStored:  # no engine has applied the topology yet
                await asyncio.sleep(0.1)
        sim.given.append(event._replace(time=self._stored_at(event) + PUT_OFF) if waits else event)

    def _stored_at(self, event: Timed) -> float:
        stream = self.sim.server.stream_of(event.source)
        return (
            next(m.time for m in reversed(stream.messages.values()) if m.headers[subjects.MESSAGE_ID] == event.id)
            if stream
            else 0.0
        )
