"""Who does something to a running topology from outside: an operator who pauses and redrives, and people who decide."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.port import NewMessage
from dspex.engine.client import letters
from dspex.engine.client.status import approvals
from dspex.engine.graph import pauses
from dspex.engine.graph.approvals import Decision
from simulated.bus import Bus, insist
from simulated.expected import FAILED
from simulated.source import APP
from simulated.timed import EDITED, edits, rejects

if TYPE_CHECKING:
    from timed_simulation import TimedSimulation

AHEAD = 100.0  # seconds by which what is redriven is ahead of the clock: more than all clocks are wrong by


async def decide(sim: TimedSimulation) -> None:
    """Decide about whatever waits, for ever, by messages that any client of NATS can write."""
    while True:
        await asyncio.sleep(sim.random.uniform(10.0, 30.0))
        if not sim.expected.undecided:
            continue  # to look costs as much as a takeover of all partitions
        for one in await insist(lambda: _waiting(sim)):
            n = one.shown["n"]
            edit = {"text": EDITED} if edits(n) else None
            decision = Decision(one.id, one.digest, "reject" if rejects(n) else "accept", edit)
            subject = subjects.decision(APP, one.topology, one.stage, one.partition)
            draft = NewMessage(subject, decision.pack(), {subjects.DECIDE: one.node})
            whole = await insist(lambda d=draft: _sealed(sim, d))
            await insist(lambda d=whole: sim.bus.publish(d))  # once more where no answer came: it changes nothing
            sim.done["decisions"] += 1


async def _sealed(sim: TimedSimulation, draft: NewMessage) -> NewMessage:
    return await sim.bus.sealing.sealed(draft) if sim.bus.sealing is not None else draft


async def _waiting(sim: TimedSimulation) -> list[approvals.Approval]:
    return [one async for one in approvals.listing(sim.bus, APP)]


async def pause(sim: TimedSimulation) -> None:
    """Pause the topology, or what is behind a name, for a while."""
    await sim.until(lambda: any(host.applied for host in sim.hosts.values()))
    await asyncio.sleep(sim.random.uniform(0.0, 20.0))
    name = sim.random.choice([pauses.WHOLE, "by_k", "again"])
    bucket = await insist(lambda: sim.bus.bucket(subjects.applied(APP), once=True))
    await insist(lambda: pauses.pause(bucket, "timed", name, 0.0))
    await asyncio.sleep(sim.random.uniform(1.0, 40.0))
    await insist(lambda: pauses.resume(bucket, "timed", name))
    sim.done["pauses"] += 1


async def redrive(sim: TimedSimulation) -> None:
    """Repair the model. Redrive what was late with a time that is not, what failed, and what lacks a branch, by a command that
    is sometimes cut off.
    """
    sim.repaired = True
    refused, time = sim.expected.refused, round(sim.now + AHEAD, 3)
    for event in sim.given:
        if event.place in refused.first:
            sim.times[event.place] = (time, time)
        elif event.place in refused.behind:
            sim.times[event.place] = (sim.times.get(event.place, (event.time,))[0], time)
    sim.done["redriven"] += refused.late + refused.failed.total()
    sim.displaced |= refused.first.keys() | refused.unanswered.keys()
    bus = Bus(sim.server, sim.random, forgets=0.3)
    sim.seals.seal(bus)
    for code, at in (("DX504", datetime.fromtimestamp(time, UTC)), (FAILED, None), ("DX515", None)):
        while True:
            try:
                found = [one async for one in letters.listing(bus, APP, reason=code)]
                await letters.redrive(bus, APP, found, time=at)
                break
            except BusError as e:
                if not e.retryable:
                    raise
            await asyncio.sleep(sim.random.uniform(0.0, 10.0))
