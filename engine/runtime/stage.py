"""The stage runner: owns some partitions of a stage, or none, and lets its pumps feed them.

What changes ownership (own, recover, release) goes through one queue, and stops all pumps. A pump that ends with anything
but a `DspexError` ends the runner with it, and so the engine: a failure is never silent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, cast

from dspex.bus import subjects, telemetry
from dspex.bus.errors import BusError, DspexError, Fenced, NotAllowed, SourceGap, StreamFull
from dspex.bus.seldom import Seldom, logger
from dspex.bus.tasks import Tasks
from dspex.engine.log.build import build
from dspex.engine.log.claims import is_ahead, take_over, waiting
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.entries import LogAddress
from dspex.engine.log.positions import unwanted
from dspex.engine.log.tables import Tables
from dspex.engine.runtime.arrival import reset
from dspex.engine.runtime.batch import Batch
from dspex.engine.runtime.inputs.input import Input
from dspex.engine.runtime.inputs.inputs import begin, inputs
from dspex.engine.runtime.inputs.position import SourceWatch
from dspex.engine.runtime.inputs.source import SourceInput
from dspex.engine.runtime.inputs.timers import TimersInput
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.process import Process
from dspex.engine.runtime.pump import Pump
from dspex.engine.runtime.refusals import Refusals
from dspex.engine.runtime.services import Services, StageOrder
from dspex.engine.runtime.walk.compile import Stage
from dspex.engine.runtime.walk.request import Address
from dspex.engine.runtime.watermarks.stater import stater

_log = logger("dspex.engine")
SLOWEST = 2.0  # seconds between two claims, at most


class StageRunner:
    """Runs one stage for the partitions that this process owns.

    Args:
        source_stream: where its source is read; "" behind hops. count: partitions of the stage.
        manifest: version that claims carry. start: the sequence behind which a partition that never committed begins.

    Attributes:
        stopped: why the source is not read, such as a gap in it; None while it is.
        paused: nothing is admitted: neither the source nor what comes over hops is read.
        resets: node → the version of the manifest that drops what it holds.
        counters: what was committed since the start, by Note; for status and tests.
    """

    def __init__(self, services: Services, stage: Stage, source_stream: str, count: int, manifest: int, start: int = 0) -> None:
        self.s, self.stage, self.topology = services, stage, stage.graph.name
        self.source_stream, self.count, self.manifest = source_stream, count, manifest
        self.partitions, self.counters = dict[int, Partition](), Counter[str]()
        self.stopped: str | None = None
        self.paused = False
        self.resets: Mapping[str, int] = {}
        self.ordered = frozenset(n for n, c in stage.calls.items() if c.call.order != "any")
        self._orders, self._alarm = asyncio.Queue[StageOrder](), asyncio.Event()
        self._pumps = Tasks(f"{self.topology}.{stage.id}", self._pump_failed)
        self._snapshots = Tasks(f"{self.topology}.{stage.id}.snapshots", self._pump_failed)
        self._moved = asyncio.Event()  # a watermark may have
        found = inputs(services, stage, (source_stream, count, start), self.counters, self._alarm, self._moved)
        self.pumps = {name: self._pump(input) for name, input in found.items()}
        self.source = cast("SourceInput | None", found.get("source"))
        self.stater = stater(services, stage, self.partitions, self.pumps, self.source, self._moved)
        self._refusals, self._seldom, self._names = Refusals(), Seldom(_log), stage.names
        self._build = build(stage.graph)
        self._landed: dict[int, int] = {}  # index → sequence of the last entry that this engine knows to be stored
        self._setbacks: Counter[int] = Counter()  # index → claims since anything was committed
        self._ahead: dict[int, float] = {}  # index → the time of its last commit, where the server's clock was behind that

    def _pump(self, input: Input) -> Pump:
        name = subjects.reader_name(self.s.app, self.topology, self.stage.id, input.name, self.s.engine)
        return Pump(input, self.partitions, self.s.clock, self.s.readers, name)

    # -- what the committer says ----------------------------------------------------------------------------------------
    def landed(self, p: Partition, batch: Batch) -> None:
        """A commit of `p` is stored."""
        self.counters.update(batch.notes)
        self.s.tally(self.topology, batch.told)
        self._setbacks.pop(p.index, None)
        self._landed[p.index] = p.log.sequence
        self._moved.set()
        if p.copied is not None and p.copied[0] == p.log.sequence and not p.revoked:  # else it is being stored already
            self._snapshots.start(self._snapshot(p, *p.copied), f"partition {p.index}")

    async def _snapshot(self, p: Partition, at: int, tables: Mapping[str, Any]) -> None:
        try:
            p.snapshot = await p.log.write_snapshot(at, tables)
            telemetry.emit("snapshot", **p.where, bytes=p.snapshot.size, sequence=at)
        except BusError as e:
            _log.warning("no snapshot now: it is tried again later", partition=p.index, why=e.message)
        p.copied = None

    def failed(self, p: Partition, error: DspexError) -> None:
        """A commit of `p` failed."""
        p.revoked = True
        p.room.set()
        p.settled.set()  # it can settle no more: let go whoever waits for it
        if self.partitions.get(p.index) is not p:
            return  # given up, or claimed anew, while the commit flew
        if isinstance(error, Fenced):
            self._fenced(p)
            return
        self._setbacks[p.index] = 0 if p.committed else self._setbacks[p.index] + 1
        self._refusals.failed(p, error)
        self._orders.put_nowait(StageOrder("recover", p.index))

    def _fenced(self, p: Partition) -> None:
        del self.partitions[p.index]
        where = {**p.where, "epoch": p.log.epoch}
        _log.warning("fenced: something that is not of this engine was stored in the log, so its claim is over", **where)
        telemetry.emit("fenced", **where)
        self.s.revoked(self.topology, self.stage.id, p.index)
        self._orders.put_nowait(StageOrder("restart"))

    # -- running ------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Carry out changes of ownership until cancelled. Raises the error that a pump failed with."""
        try:
            while True:
                orders = [await self._orders.get()]
                while not self._orders.empty():
                    orders.append(self._orders.get_nowait())
                await self._obey(orders)
                if any(order.what == "restart" for order in orders):
                    await self._pumps.stop()
                if not self._pumps:
                    self._start_pumps()
        finally:
            await self._pumps.stop()
            await self._snapshots.stop()

    def _start_pumps(self) -> None:
        self.stopped = None
        if self.partitions:
            for name, pump in self.pumps.items():
                if not (self.paused and pump.input.gated) and (name != "source" or not self.stage.dropped):
                    self._pumps.start(self._pumping(name, pump), name)
            if self.stater is not None:
                self._pumps.start(self.stater.run(), "watermarks")
            if self.source is not None and not self.stage.dropped and not self.paused:
                self._pumps.start(self._watching(SourceWatch(self.s.bus, self.source, self.pumps["source"])), "watch")

    async def _pumping(self, name: str, pump: Pump) -> None:
        try:
            await pump.run()
        except DspexError as e:
            self.stopped = None if e.retryable else e.message
            if e.retryable or (isinstance(e, BusError) and not isinstance(e, (NotAllowed, SourceGap))):
                self._seldom.warning("reading again soon", input=name, why=e.message)
                await asyncio.sleep(pump.pause())
                self._orders.put_nowait(StageOrder("restart"))
                return
            telemetry.emit("stopped", topology=self.topology, stage=self.stage.id, code=e.code, why=e.message)
            _log.error("stopped", topology=self.topology, stage=self.stage.id, code=e.code, why=e.message, fix=e.fix)

    async def _watching(self, watch: SourceWatch) -> None:
        _log.warning("reads its source again", why=await watch.run(list(self.partitions.values()), self.s.clock))
        self._orders.put_nowait(StageOrder("restart"))

    def _pump_failed(self, name: str, error: BaseException) -> None:
        self._orders.put_nowait(StageOrder("fail", error=error))

    def pause(self, paused: bool) -> None:
        """Admit nothing more, so that what is open comes to its end; or go on."""
        if paused != self.paused:
            self.paused = paused
            timers = cast("TimersInput", self.pumps["timers"].input)
            timers.waiting = {name for name, node in self.stage.states.items() if paused and node.state.begins}
            self._orders.put_nowait(StageOrder("restart"))

    # -- ownership ------------------------------------------------------------------------------------------------------
    def own(self, index: int) -> None:
        """Claim a partition and run it, as soon as the runner gets to it."""
        if index in self._ahead and is_ahead(self._ahead[index], self.s.clock()):
            self.s.revoked(self.topology, self.stage.id, index)
            return
        self._orders.put_nowait(StageOrder("own", index))

    def release(self, index: int) -> None:
        """Give a partition up: commit what was taken, take no more."""
        self._orders.put_nowait(StageOrder("release", index))

    async def _obey(self, orders: Sequence[StageOrder]) -> None:
        """Carry out orders one after another, claims in a row together. Meanwhile the pumps go on with the other partitions."""
        claims: dict[int, None] = {}
        for order in orders:
            if order.what in ("own", "recover"):
                claims[order.partition] = None
            elif order.what == "release":
                await self._claim(list(claims))
                claims = {}
                await self._pumps.stop()
                await self._give_up(order.partition)
            elif order.error is not None:
                raise order.error
        await self._claim(list(claims))

    async def _claim(self, indices: Sequence[int]) -> None:
        """Claim partitions, and try until that is decided: without its log there is nothing to go on from."""
        setbacks = max((self._setbacks[i] for i in indices), default=0)
        if setbacks > 2:  # not even a dead letter can be stored: claim less and less often
            await asyncio.sleep(min(SLOWEST, 0.05 * 2**setbacks))
        pause, logs = 0.05, {self._log(index): index for index in indices}
        while logs:
            for old in [self.partitions.pop(i) for i in logs.values() if i in self.partitions]:
                old.revoked = True
            try:
                unread = await self._claimed(logs)
            except BusError as e:
                if not e.retryable and await self.s.stream_is_there():
                    raise
                unread = [(log, e) for log in logs]
            logs = {log: logs[log] for log, _ in unread}
            for _, why in unread[:1]:
                if isinstance(why, StreamFull):
                    self.s.committer.room(why)
                self._seldom.warning("cannot claim yet", partitions=list(logs.values()), why=why.message)
                await asyncio.sleep(pause)
                pause = min(SLOWEST, pause * 2)

    async def _claimed(self, logs: Mapping[CommitLog, int]) -> list[tuple[CommitLog, BusError]]:
        """Claim partitions and begin to run them; those that could not be taken over now. Raises BusError."""
        s, began = self.s, monotonic()
        made, gone = partial(Tables, self.ordered, self._names), partial(unwanted, self.stage.id, self.stage.calls, self.resets)
        claims = await take_over(s.bus, list(logs), made, s.clock, s.repair, gone)
        await self._pumps.stop()
        for pump in self.pumps.values() if claims.won else ():
            pump.forget()  # in a pause it reads nothing again, and what it has read is not what these partitions have
        for log, tables in claims.won:
            self._begin(logs[log], log, tables, monotonic() - began)
        if won := [logs[log] for log, _ in claims.won]:
            s.committer.room(None)
            _log.info("owns", topology=self.topology, stage=self.stage.id, partitions=won)
        if 0 in won:
            await begin(s, self.stage)
        self._start_pumps()  # at once: some may have to be claimed again until they can be read
        for log, time in claims.ahead:
            self._ahead[logs[log]] = time
            _log.error("a partition is not claimed yet", partition=logs[log], why=self.waits)
        for log in (*claims.lost, *dict(claims.ahead)):
            s.revoked(self.topology, self.stage.id, logs[log])
        return claims.unread

    def _log(self, index: int) -> CommitLog:
        address = LogAddress.of(self.s.app, self.topology, self.stage.id, index)
        newest = partial(self.s.newest, self.topology, self.manifest)
        return CommitLog(self.s.bus, address, self.s.engine, self.manifest, self._build, newest)

    def _begin(self, index: int, log: CommitLog, tables: Tables, seconds: float) -> None:
        s = self.s
        self.counters["unreadable"] += log.passed
        address = Address(s.app, self.topology, self.stage.id, index, log.nonce, s.limit, s.state_limit)
        process, most = Process(self.stage, address, self._names, self.source_stream), (s.most_arrivals, s.most_open_calls)
        outward = self.stater.outward if self.stater is not None else None
        p = Partition(index, log, tables, process, self, s.committer.request_commit, self._alarm, most, outward)
        self._refusals.apply(p)
        self.counters["rolled_back"] += log.is_rolled_back(self._landed.get(index, 0), p.where)
        telemetry.emit("claimed", **p.where, epoch=log.epoch, seconds=seconds)
        self.partitions[index] = p
        if self.resets and (dropped := reset(self.resets, tables.position("manifest").sequence, s.clock())) is not None:
            p.take_in(dropped)

    @property
    def waits(self) -> str | None:
        """Why partitions are not claimed now, with both times; None where none waits."""
        return waiting(self._ahead.values(), self.s.clock())

    async def drain(self) -> None:
        """Stop reading and commit what was taken. Open calls stay open: their records wait in the stream."""
        await self._pumps.stop()
        for index in list(self.partitions):
            await self._give_up(index)

    async def _give_up(self, index: int) -> None:
        p = self.partitions.pop(index, None)
        if p is None:
            self.s.revoked(self.topology, self.stage.id, index)
            return
        if not p.revoked:  # else it can settle no more
            await p.settled.wait()
        p.revoked = True
        telemetry.emit("released", **p.where)
        self.s.revoked(self.topology, self.stage.id, index)
