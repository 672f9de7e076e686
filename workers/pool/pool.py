"""A pool's parent process: takes work from the bus, has it run in children, stores the records. Never runs a program itself.

So nothing that a program does, not even in C with the GIL held, can stop the signs of life that keep its work from being
given to somebody else. For each piece of work: a slot, a run, the record stored under the attempt's id, and only then the
ack. A parent that dies in between leaves work that is delivered again; the second record has the same id and is not stored.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from dataclasses import replace
from typing import Any

import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, CallTimeout, DecodeError, DspexError, WorkerLost
from dspex.bus.message import Message, new_id
from dspex.bus.port import Bus, Delivery, Subscription, WorkQueue
from dspex.bus.records import CallRecord, Work
from dspex.workers.config import PoolConfig, check_keys
from dspex.workers.models import weights
from dspex.workers.models.local import LocalModel
from dspex.workers.pool.child_process import Child
from dspex.workers.pool.records import Records
from dspex.workers.pool.supervisor import Supervisor, resident

log: Any = structlog.get_logger("dspex.workers")

ACK_WAIT, SIGN_OF_LIFE = 15.0, 5.0
REACT_WITHIN = 2.0  # seconds a child has to give up a call before it is killed
DELIVERIES = 10  # a piece of work that was delivered more often has killed its workers, parents and all
OPEN_AGAIN = 1.0  # seconds between two tries to open the work queue
STORE_AGAIN = 10.0  # seconds until work whose record could not be stored is delivered again
LOCAL_SLOTS = 1  # requests that a local model serves at once: more share the same cores, and each prompt cache is cold


class Pool:
    """The workers of one resource class on this machine.

    Args:
        bus: an open connection; it stays the caller's.
        config: see `dspex.workers.config.resolve`.
        ack_wait: seconds without a sign of life after which work is given to somebody else.
        sign_of_life: seconds between two signs.
    """

    def __init__(self, bus: Bus, config: PoolConfig, *, ack_wait: float = ACK_WAIT, sign_of_life: float = SIGN_OF_LIFE) -> None:
        self.bus, self.config = bus, config
        self._ack_wait, self._sign_of_life = ack_wait, sign_of_life
        self.id = new_id()[-12:]
        self.worker = f"{config.name}-{self.id}"
        self.children = Supervisor(config)
        self.draining = False
        self.served = 0
        self.unplaced = 0  # calls accepted that have not asked for a slot yet
        self.records = Records(bus, config.name)
        self._models: dict[str, LocalModel] = {}
        self._held: set[Delivery] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._background: list[asyncio.Task[None]] = []
        self._subscriptions: list[Subscription] = []
        self._queue: WorkQueue | None = None
        self._started = time.time()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.children.failed_with = self._fail

    # -- life ------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Start the children and begin to take work. Raises ConfigError, BusError."""
        from dspex.workers.pool.interactive import Interactive

        check_keys(self.config)
        profile = self.config.default_profile()
        warm = [self.children.start()]
        if profile is not None and profile.local:
            weights.require(profile.model)
            warm.append(self._warm(profile.name))
        await asyncio.gather(*warm)
        app, name = self.config.app, self.config.name
        self._subscriptions.append(await self.bus.subscribe(subjects.control(app, name), self._control))
        self.interactive = Interactive(self)
        self._background = [
            asyncio.create_task(self._take()),
            asyncio.create_task(self._signs_of_life()),
            asyncio.create_task(self.interactive.run()),
        ]
        for task in self._background:
            task.add_done_callback(self._ended)
        log.info("pool ready", **self.summary())

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A task that the pool cannot do without has died: a process that only looks healthy must not go on."""
        log.error("a part of the pool failed", pool=self.config.name, exc_info=error)
        if not self._failed.done():
            failure = WorkerLost(f"pool {self.config.name}: a part of it failed: {error!r}", node=self.config.name)
            failure.__cause__ = error
            self._failed.set_exception(failure)
            self._failed.exception()  # seen: asyncio need not warn where nobody waits

    async def failed(self) -> None:
        """Until a part of the pool fails, which is a bug of dspex. Raises WorkerLost: whoever runs the pool starts it anew."""
        await asyncio.shield(self._failed)

    def summary(self) -> dict[str, Any]:
        """What a log line and the CLI say about a ready pool."""
        hello = self.children.hello
        return {
            "pool": self.config.name,
            "id": self.id,
            "size": self.children.ready,
            "slots": self.config.slots,
            "dspy_version": hello.get("dspy_version", ""),
            "programs": hello.get("found", []),
            "failed": hello.get("failed", {}),
        }

    async def drain(self, grace: float) -> None:
        """Take nothing more, let what runs finish within `grace` seconds, hand the rest back, end the children."""
        self.draining = True
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._queue is not None:
            await self._queue.close()
        beat = asyncio.create_task(self._signs_of_life())
        if self._tasks:
            log.info("pool drains", pool=self.config.name, calls=len(self._tasks), grace=grace)
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        beat.cancel()
        for subscription in self._subscriptions:
            await subscription.close()
        await self.children.stop()
        await asyncio.gather(*(m.stop() for m in self._models.values()))
        log.info("pool stopped", pool=self.config.name, served=self.served)

    def spawn(self, work: Any) -> asyncio.Task[None]:
        """A task that drain waits for."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a call was not served", pool=self.config.name, exc_info=error)

    # -- work ------------------------------------------------------------------------------------------------------
    def free(self) -> int:
        """How many more calls could start now. None while records pile up, as before a full stream: they are all kept."""
        if self.draining or self.records.pending > self.config.size * self.config.slots:
            return 0
        return max(0, self.children.free - self.unplaced)

    async def _take(self) -> None:
        """Take work for ever. A pool may be there before its application is: then it waits for the stream."""
        told = ""
        while True:
            try:
                self._queue = await self._open()
                told = ""
                while True:
                    self._accept(await self._queue.next())
            except BusError as error:
                if error.message != told:
                    log.warning("no work to be had, trying again", pool=self.config.name, why=error.message)
                told = error.message
            await asyncio.sleep(OPEN_AGAIN)

    async def _open(self) -> WorkQueue:
        app, name = self.config.app, self.config.name
        return await self.bus.work(
            subjects.stream(app),
            subjects.work_pattern(app, name),
            name=subjects.work_consumer(name),
            ack_wait=self._ack_wait,
            free=self.free,
        )

    def _accept(self, delivery: Delivery) -> None:
        self._held.add(delivery)
        try:
            work = Work.unpack(delivery.message.data)
        except DecodeError as error:
            self.spawn(self._drop(delivery, error))
            return
        self.unplaced += 1
        self.spawn(self._serve(delivery, work))

    async def _signs_of_life(self) -> None:
        while True:
            await asyncio.sleep(self._sign_of_life)
            for delivery in list(self._held):
                try:
                    await delivery.in_progress()
                except BusError as error:
                    log.warning("no sign of life sent", pool=self.config.name, error=error.message)

    async def _serve(self, delivery: Delivery, work: Work) -> None:
        """One delivery: run it, store the record, then ack."""
        packed = delivery.message.data
        try:
            outcome = await self.run(work, packed, delivery.delivered)
            if await self.records.store(work.reply, outcome, work, packed):
                await delivery.ack()
                self.served += 1
            else:
                await delivery.nak(STORE_AGAIN)
        except BusError as error:
            log.warning("work not settled; it will come again", pool=self.config.name, error=error.message)
        except asyncio.CancelledError:
            await self._hand_back(delivery)
            raise
        finally:
            self._held.discard(delivery)

    async def _drop(self, delivery: Delivery, error: DecodeError) -> None:
        """Whoever asked cannot be told: the reply subject is in what cannot be read. Its deadline will tell it."""
        log.error("unreadable work dropped", pool=self.config.name, subject=delivery.message.subject, why=error.message)
        self._held.discard(delivery)
        await delivery.ack()

    async def _hand_back(self, delivery: Delivery) -> None:
        try:
            await delivery.nak()
        except BusError as error:
            log.warning("work not handed back; it will come again", pool=self.config.name, error=error.message)

    def _status(self, work: Work, text: str) -> None:
        log.info("status", pool=self.config.name, call=work.call, node=work.node, text=text)

    # -- one attempt -----------------------------------------------------------------------------------------------
    async def run(self, work: Work, packed: bytes, delivered: int = 1) -> CallRecord:
        """One attempt at a call, from waiting for a slot to its outcome. An error is an outcome too."""
        self.unplaced -= 1
        try:
            if delivered > DELIVERIES:
                raise WorkerLost(f"{work.node}: {delivered - 1} pools took this call and none came back", node=work.node)
            self._check_deadline(work)
            child = await self.children.acquire()
        except DspexError as error:
            return self.refusal(work, error)
        started = time.time()
        try:
            self._check_deadline(work)
            local = await self._local(work)
            return await self._run_in(child, work, packed, local)
        except DspexError as error:
            return replace(self.refusal(work, error), started=started, elapsed=time.time() - started)
        finally:
            self.children.release(child)

    async def _run_in(self, child: Child, work: Work, packed: bytes, local: str | None) -> CallRecord:
        number, future = child.call(packed, local, lambda text: self._status(work, text))
        limit = min(work.timeout, work.deadline - time.time()) if work.deadline else work.timeout
        try:
            await asyncio.wait([future], timeout=limit)
            if not future.done():
                await self._give_up(child, number, future)
                if future.done() and future.exception() is None and future.result()["outputs"] is not None:
                    return self._outcome(work, future.result())  # it came after all, and was paid for
                raise CallTimeout(f"{work.node}: no answer within {limit:.1f} s", node=work.node)
        except asyncio.CancelledError:
            await self._give_up(child, number, future)
            raise
        return self._outcome(work, future.result())

    async def _give_up(self, child: Child, number: int, future: asyncio.Future[Any]) -> None:
        """Ask the child to stop the call; kill it if it does not react, which ends its other calls in WorkerLost."""
        child.cancel(number)
        await asyncio.wait([future], timeout=REACT_WITHIN)
        if not future.done():
            log.error("worker does not react, killing it", pool=self.config.name, pid=child.pid, calls=child.busy)
            self.children.kill(child)
            await asyncio.wait([future])

    def _check_deadline(self, work: Work) -> None:
        if work.deadline and time.time() >= work.deadline:
            raise CallTimeout(f"{work.node}: its deadline passed before a worker was free", node=work.node)

    # -- local models ----------------------------------------------------------------------------------------------
    async def _local(self, work: Work) -> str | None:
        """Where the local model listens, if the call may need it."""
        default = self.config.default_profile()
        names = list(work.spec.get("lm") or ([default.name] if default else []))
        local = [n for n in names if n in self.config.profiles and self.config.profiles[n].local]
        return await self._model(local[0]).url() if local else None

    async def _warm(self, name: str) -> None:
        await self._model(name).url()

    def _model(self, name: str) -> LocalModel:
        profile = self.config.profile(name)
        if profile.model not in self._models:
            # One core is left to everybody else. llama.cpp's threads wait for each other at every step: with as many as
            # there are cores, any other process on one of them made calls eight times slower (8.9 s instead of 1.1 s).
            threads = max(1, (os.cpu_count() or 1) - 1)
            self._models[profile.model] = LocalModel(profile, LOCAL_SLOTS, threads)
        return self._models[profile.model]

    # -- outcomes --------------------------------------------------------------------------------------------------
    def refusal(self, work: Work, error: DspexError) -> CallRecord:
        """The outcome of an attempt that no child answered."""
        return self._outcome(work, {"error": {**error.as_dict(), "traceback": ""}, "started": time.time()})

    def _outcome(self, work: Work, frame: dict[str, Any]) -> CallRecord:
        hello = self.children.hello
        return CallRecord(
            call=work.call,
            ordinal=work.ordinal,
            attempt=work.attempt,
            node=work.node,
            outputs=frame.get("outputs"),
            error=frame.get("error"),
            route=frame.get("route", "worker"),
            lm=frame.get("lm", ""),
            worker=self.worker,
            program=frame.get("program", ""),
            dspy_version=frame.get("dspy_version") or hello.get("dspy_version", ""),
            started=frame["started"],
            elapsed=frame.get("elapsed", 0.0),
            usage=frame.get("usage") or {},
        )

    # -- questions -------------------------------------------------------------------------------------------------
    async def _control(self, message: Message) -> None:
        try:
            kind = json.loads(message.data).get("kind")
        except (ValueError, AttributeError):
            kind = None
        if kind == "status" and message.reply:
            await self.bus.send(message.reply, json.dumps(self.status()).encode())

    def status(self) -> dict[str, Any]:
        """What the pool says about itself, JSON-able."""
        hello = self.children.hello
        return {
            "id": self.id,
            "class": self.config.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "size": self.config.size,
            "slots": self.config.slots,
            "busy": self.children.busy,
            "ready": self.children.ready,
            "restarts": self.children.restarts,
            "failed": self.children.failed,
            "draining": self.draining,
            "served": self.served,
            "started": self._started,
            "dspy_version": hello.get("dspy_version", ""),
            "python": hello.get("python", ""),
            "programs": {"found": hello.get("found", []), "failed": hello.get("failed", {})},
            "children": [{"pid": c.pid, "rss": resident(c.pid), "calls": c.calls} for c in self.children.children],
            "model_servers": [m.pid for m in self._models.values() if m.pid is not None],
        }
