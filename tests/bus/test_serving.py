"""The worker loop by itself: what it does with its queue when the bus fails."""

from __future__ import annotations

from collections.abc import Callable

from dspex.bus.errors import Unreachable
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import BusEvents, Delivery
from dspex.bus.records import Work
from dspex.bus.serving import OPEN_AGAIN, Job, WorkLoop


class _FailingQueue:
    """A work queue that the bus has lost."""

    def __init__(self) -> None:
        self.closed = 0

    async def next(self) -> Delivery:
        raise Unreachable("the consumer is gone")

    async def close(self) -> None:
        self.closed += 1


class _Bus(MemoryBus):
    """A connection whose work queues all fail."""

    def __init__(self) -> None:
        super().__init__(MemoryServer(), BusEvents())
        self.queues: list[_FailingQueue] = []

    async def work(  # type: ignore[override]
        self, stream: str, pattern: str, *, name: str, ack_wait: float, free: Callable[[], int]
    ) -> _FailingQueue:
        self.queues.append(_FailingQueue())
        return self.queues[-1]


def test_a_worker_closes_each_queue_that_failed_once_before_it_opens_the_next() -> None:
    loop, bus, failures = VirtualLoop(), _Bus(), list[BaseException]()

    def accept(work: Work, delivery: Delivery) -> Job:
        raise AssertionError("no work can come")

    try:
        worker = WorkLoop(bus, "lab", "lightweight", accept, free=lambda: 1, failed=failures.append)

        async def start() -> None:
            worker.start()

        loop.run(start())
        loop.advance(2.5 * OPEN_AGAIN)
        assert [q.closed for q in bus.queues] == [1, 1, 1]
        loop.run(worker.drain(0.0))
        assert [q.closed for q in bus.queues] == [1, 1, 1]
        assert failures == []
    finally:
        loop.close()
