"""Calls under load: so many in flight all the time, or one after another as they come due, whether or not others are answered.

Clients that are coroutines are asked by tasks, and those that block by threads, as their users would. The answer to each call
must be its argument. All times are of the client's clock.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Protocol

MOST = 20_000  # calls that may be open on a schedule: with more, the schedule is not kept, and ends
THREADS = 128  # of a client that blocks: calls that it can have open


@dataclass(frozen=True)
class Took:
    """What some calls took.

    Attributes:
        latencies: seconds of each; on a schedule from when it was due.
        seconds: until the last answer.
        kept: how many of the calls on a schedule were answered when it was to end, from 0 to 1. In a queue that grows, few are.
    """

    latencies: list[float]
    seconds: float
    kept: float = 1.0


class Load(Protocol):
    """How a system is asked."""

    async def once(self) -> None:
        """One call: returns when it is answered."""
        ...

    async def in_flight(self, calls: int, seconds: float) -> Took:
        """So many calls at a time: each is followed by the next."""
        ...

    async def burst(self, calls: int) -> Took:
        """So many calls at once, and no more."""
        ...

    async def on_schedule(self, rate: float, seconds: float) -> Took:
        """So many calls a second, at random times, the same for each system."""
        ...


class _Schedule:
    """When calls come, and which were answered in time. All times are seconds from its begin."""

    def __init__(self, rate: float, seconds: float) -> None:
        self.seconds, gaps, at = seconds, random.Random(7), 0.0
        self.due = list[float]()
        while (at := at + gaps.expovariate(rate)) < seconds:
            self.due.append(at)
        self.began = time.perf_counter()
        self.latencies = list[float]()
        self._in_time = 0

    @property
    def now(self) -> float:
        return time.perf_counter() - self.began

    def may_send(self, sent: int) -> bool:
        """Whether so many more may be sent: not behind its end, and not where too many wait for their answers."""
        return self.now < self.seconds and sent - len(self.latencies) < MOST

    def answered(self, due: float) -> None:
        """Note an answer."""
        now = self.now
        self.latencies.append(now - due)
        self._in_time += now <= self.seconds

    def took(self) -> Took:
        """What came of it."""
        return Took(self.latencies, self.now, self._in_time / max(1, len(self.due)))


def _check(asked: str, answered: object) -> None:
    if answered != asked:
        raise RuntimeError(f"asked {asked!r}, and the answer was {answered!r}")


class Coroutines:
    """Of `ask`, which is awaited."""

    def __init__(self, ask: Callable[[str], Awaitable[object]]) -> None:
        self._ask, self._numbers = ask, count()

    async def once(self) -> None:
        """See Load."""
        text = f"call {next(self._numbers)}"
        _check(text, await self._ask(text))

    async def in_flight(self, calls: int, seconds: float) -> Took:
        """See Load."""
        latencies, began = list[float](), time.perf_counter()

        async def lane() -> None:
            while (sent := time.perf_counter()) < began + seconds:
                await self.once()
                latencies.append(time.perf_counter() - sent)

        async with asyncio.TaskGroup() as group:
            for _ in range(calls):
                group.create_task(lane())
        return Took(latencies, time.perf_counter() - began)

    async def spread(self, calls: int, seconds: float, over: float) -> Took:
        """`in_flight`, where they begin one after the other within `over` seconds; from when all have begun.

        Calls of one length that begin together end together, and wait for each other at every step. Those of a model do not.
        """
        latencies, began = list[float](), time.perf_counter()

        async def lane(number: int) -> None:
            await asyncio.sleep(over * number / calls)
            while (sent := time.perf_counter()) < began + over + seconds:
                await self.once()
                if began + over <= (now := time.perf_counter()) < began + over + seconds:
                    latencies.append(now - sent)

        async with asyncio.TaskGroup() as group:
            for number in range(calls):
                group.create_task(lane(number))
        return Took(latencies, seconds)

    async def burst(self, calls: int) -> Took:
        """See Load."""
        latencies, began = list[float](), time.perf_counter()

        async def one() -> None:
            await self.once()
            latencies.append(time.perf_counter() - began)

        async with asyncio.TaskGroup() as group:
            for _ in range(calls):
                group.create_task(one())
        return Took(latencies, time.perf_counter() - began)

    async def on_schedule(self, rate: float, seconds: float) -> Took:
        """See Load."""
        schedule = _Schedule(rate, seconds)

        async def one(due: float) -> None:
            await self.once()
            schedule.answered(due)

        async with asyncio.TaskGroup() as group:
            for sent, due in enumerate(schedule.due):
                await asyncio.sleep(max(0.0, due - schedule.now))
                if not schedule.may_send(sent):
                    break
                group.create_task(one(due))
        return schedule.took()


class Threads:
    """Of `ask`, which blocks. The threads stay, with the connections that a client may keep for each."""

    def __init__(self, ask: Callable[[str], object]) -> None:
        self._ask, self._numbers = ask, count()
        self._pool = ThreadPoolExecutor(THREADS)

    def _once(self) -> None:
        text = f"call {next(self._numbers)}"
        _check(text, self._ask(text))

    async def once(self) -> None:
        """See Load."""
        await asyncio.wrap_future(self._pool.submit(self._once))

    async def in_flight(self, calls: int, seconds: float) -> Took:
        """See Load."""
        latencies, began = list[float](), time.perf_counter()

        def lane() -> None:
            while (sent := time.perf_counter()) < began + seconds:
                self._once()
                latencies.append(time.perf_counter() - sent)

        await asyncio.gather(*(asyncio.wrap_future(self._pool.submit(lane)) for _ in range(calls)))
        return Took(latencies, time.perf_counter() - began)

    async def burst(self, calls: int) -> Took:
        """See Load. As many at once as there are threads."""
        latencies, began = list[float](), time.perf_counter()

        def one() -> None:
            self._once()
            latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(asyncio.wrap_future(self._pool.submit(one)) for _ in range(calls)))
        return Took(latencies, time.perf_counter() - began)

    async def on_schedule(self, rate: float, seconds: float) -> Took:
        """See Load."""
        return await asyncio.to_thread(self._on_schedule, rate, seconds)

    def _on_schedule(self, rate: float, seconds: float) -> Took:
        schedule, sent = _Schedule(rate, seconds), list[Future[None]]()

        def one(due: float) -> None:
            self._once()
            schedule.answered(due)

        for due in schedule.due:
            time.sleep(max(0.0, due - schedule.now))
            if not schedule.may_send(len(sent)):
                break
            sent.append(self._pool.submit(one, due))
        for future in sent:
            future.result()
        return schedule.took()
