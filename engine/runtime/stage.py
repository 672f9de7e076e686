"""The stage runner: owns some partitions of a stage, or none, and lets its pumps feed them.

What changes ownership (own, recover, release) goes through one queue and stops all pumps first. A pump that ends with anything
but a `DspexError` ends the runner with it, and so the engine: a failure is never silent.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, DspexError, Fenced, StreamFull
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.state import State
from dspex.engine.runtime.compile import Stage
from dspex.engine.runtime.inbox import Inbox
from dspex.engine.runtime.intake import Intake
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.pumps import Pumps
from dspex.engine.runtime.services import Services
from dspex.engine.runtime.settle import Counters, Poison, Settler

_log = structlog.get_logger("dspex.engine")
SLOWEST = 2.0  # seconds between two claims, at most


@dataclass(frozen=True)
class _Order:
    """A change of ownership, carried out by the runner's own task."""

    what: Literal["own", "recover", "release", "restart", "fail"]
    index: int = -1
    why: str = ""
    error: BaseException | None = None


class StageRunner:
    """Runs one stage for the partitions that this process owns. `start`: where a partition that never committed begins."""

    def __init__(self, services: Services, stage: Stage, source_stream: str, count: int, manifest: int, start: int = 0) -> None:
        self.s = services
        self.stage = stage
        self.topology = stage.graph.name
        self.source_stream = source_stream
        self.manifest = manifest
        self.start = start
        self.counters = Counters()
        self.partitions: dict[int, Partition] = {}
        self.ordered = frozenset(n for n, c in stage.calls.items() if c.call.order == "key")
        self._poison: Poison = {}
        settler = Settler(services.app, stage, source_stream, services.limit, self.counters)
        self._new_names = settler.new_names
        self._orders: asyncio.Queue[_Order] = asyncio.Queue()
        self.pumps = Pumps(
            services,
            stage,
            source_stream,
            count,
            self.partitions,
            Inbox(stage, self.counters, self._poison, settler),
            Intake(services.app, stage, source_stream, services.limit, self.counters, self._poison),
            owner=self,
            restart=self._restart,
            failed=self._pump_failed,
        )
        self._one_by_one: dict[int, int] = {}  # index → events that get a commit each after the next claim
        self._setbacks: dict[int, int] = {}  # index → claims since anything was committed

    def own(self, index: int) -> None:
        """Claim a partition and run it, as soon as the runner gets to it."""
        self._orders.put_nowait(_Order("own", index))

    def failed(self, p: Partition, error: DspexError) -> None:
        """A commit of `p` failed: the committer gives the error."""
        p.revoked = True
        p.room.set()
        p.settled.set()  # it can settle no more: let go whoever waits for it
        if self.partitions.get(p.index) is not p:
            return  # given up, or claimed anew, while the commit flew
        if isinstance(error, Fenced):
            del self.partitions[p.index]
            _log.warning(
                "fenced: another engine committed first, so this one commits nothing more here",
                topology=self.topology,
                stage=self.stage.id,
                partition=p.index,
                epoch=p.log.epoch,
            )
            self.s.revoked(self.topology, self.stage.id, p.index)
            self._restart("fenced")
            return
        self._setbacks[p.index] = 0 if p.committed else self._setbacks.get(p.index, 0) + 1
        if p.one_by_one or not error.retryable:
            self._one_by_one[p.index] = p.unsure
        if not error.retryable:
            self._suspect(p, error)
        self._orders.put_nowait(_Order("recover", p.index, error.message))

    def _suspect(self, p: Partition, error: DspexError) -> None:
        """A commit was refused for what is in it. Commit one event at a time until the refused one is alone."""
        assert p.flying is not None
        batch = p.flying[0]
        _log.error("the server refused a commit", why=error.message, partition=p.index, events=batch.inputs)
        if batch.inputs == 1:
            self._poison[p.index, *batch.event] = error.message

    async def run(self) -> None:
        """Carry out changes of ownership until cancelled. Raises the error that a pump failed with."""
        try:
            while True:
                order = await self._orders.get()
                await self.pumps.stop()
                await self._obey(order)
                while not self._orders.empty():
                    await self._obey(self._orders.get_nowait())
                self.pumps.start()
        finally:
            await self.pumps.stop()

    def _restart(self, why: str) -> None:
        self._orders.put_nowait(_Order("restart", why=why))

    def _pump_failed(self, kind: str, error: BaseException) -> None:
        self._orders.put_nowait(_Order("fail", why=str(error), error=error))

    async def _obey(self, order: _Order) -> None:
        if order.what in ("own", "recover"):
            setbacks = self._setbacks.get(order.index, 0)
            if setbacks > 2:  # not even a dead letter can be stored: claim less and less often
                await asyncio.sleep(min(SLOWEST, 0.05 * 2**setbacks))
            await self._claim(order.index)
        elif order.what == "release":
            await self._give_up(order.index)
        elif order.error is not None:
            raise order.error

    async def _claim(self, index: int) -> None:
        """Claim a partition, and try until it succeeds: without its log there is nothing to go on from."""
        pause = 0.05
        while True:
            if (old := self.partitions.pop(index, None)) is not None:
                old.revoked = True
            try:
                self.partitions[index] = await self._claimed(index)
                return
            except BusError as e:
                if not e.retryable:
                    raise
                if isinstance(e, StreamFull):
                    self.s.committer.full = e.message
                _log.warning("cannot claim yet", partition=index, why=e.message)
            await asyncio.sleep(pause)
            pause = min(SLOWEST, pause * 2)

    async def _claimed(self, index: int) -> Partition:
        s = self.s
        log = CommitLog(s.bus, s.app, self.topology, self.stage.id, index, s.engine, self.manifest)
        state = await log.claim(State(self.ordered, self._new_names), at=s.clock(), repair=s.repair.before)
        state.source_sequence = state.source_sequence or self.start
        reply = subjects.result(s.app, self.topology, self.stage.id, index)
        p = Partition(index, log, state, app=s.app, topology=self.topology, reply=reply, most=s.most_inputs)
        p.one_by_one = self._one_by_one.pop(index, 0)
        _log.info("owns", topology=self.topology, stage=self.stage.id, partition=index, epoch=log.epoch)
        return p

    def release(self, index: int) -> None:
        """Give a partition up: commit what was walked, walk no more."""
        self._orders.put_nowait(_Order("release", index))

    async def drain(self) -> None:
        """Stop reading and commit what was walked. Open calls stay open: their results wait in the stream."""
        await self.pumps.stop()
        for index in list(self.partitions):
            await self._give_up(index)

    async def _give_up(self, index: int) -> None:
        p = self.partitions.pop(index, None)
        if p is None:
            return
        if not p.settled.is_set():
            self.s.committer.request_commit(p, self)
            await p.settled.wait()
        p.revoked = True
        self.s.revoked(self.topology, self.stage.id, index, given_up=True)
