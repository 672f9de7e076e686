"""The time of the server, on a machine whose own clock may be wrong.

Deadlines and retries of one application run on one clock: that of its stream's leader. It is asked now and then, carried on by
this machine's monotonic clock, and never set back. Small differences, and all backward ones, are made up for slowly, so that
time neither stands still nor jumps for what is measured with it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from dspex.bus.port import Bus, StreamInfo

SLEW: Final = 0.1  # how much faster or slower than a second the clock's second may be, while a difference is made up for
STILL: Final = 5.0  # seconds for which a process stands still only where it was stopped, or its machine slept
JUMP: Final = 10.0  # seconds behind the server from which on the clock is set forward at once: this machine has slept


class ServerClock:
    """Calling it gives the server's time now, in seconds since the epoch. It must have been asked before.

    Args:
        stream: whose leader is asked. heard: is told what else it said.
    """

    def __init__(self, bus: Bus, stream: str, heard: Callable[[StreamInfo], None] = lambda info: None) -> None:
        self._bus, self._stream, self._heard = bus, stream, heard
        self._asked = False
        self._at = self._value = 0.0  # on the monotonic clock, and what the time was then
        self._rate, self._until = 1.0, 0.0  # seconds of ours a second, up to a time of the monotonic clock

    def __call__(self) -> float:
        if not self._asked:
            raise AssertionError("the server was not asked for its time yet")
        now = asyncio.get_running_loop().time()
        slewed = min(now, self._until) - self._at if self._until > self._at else 0.0
        return self._value + slewed * self._rate + (now - self._at - slewed)

    @property
    def known(self) -> bool:
        """Whether the server has told its time."""
        return self._asked

    def age(self, stored: float) -> float:
        """Seconds since a message was stored; 0 while the server's time is not known, which refuses nobody wrongly."""
        return max(0.0, self() - stored) if self._asked else 0.0

    async def ask(self) -> float:
        """Compare with the server; by how many seconds this clock was behind it. Where there is no such stream, nothing is
        known. Raises BusError.
        """
        monotonic = asyncio.get_running_loop().time
        before = monotonic()
        info = await self._bus.stream(self._stream)
        now = monotonic()
        if info is None:
            return 0.0
        self._heard(info)
        unsure = (now - before) / 2  # the answer was made at some time between the question and its arrival
        there = info.now + unsure
        if not self._asked:
            self._asked = True
            self._set(now, there, 0.0)
            return 0.0
        here = self()
        behind = there - here
        if behind > JUMP + unsure:
            self._set(now, there, 0.0)
        else:
            self._set(now, here, behind if abs(behind) > unsure else 0.0)
        return behind

    def _set(self, at: float, value: float, behind: float) -> None:
        self._at, self._value = at, value
        self._rate, self._until = (1 + SLEW if behind > 0 else 1 - SLEW), at + abs(behind) / SLEW


class Stillness:
    """Whether this process stood still: it was stopped, or its machine slept. `beat`: seconds between two looks, at most."""

    def __init__(self, beat: float) -> None:
        self._beat = beat
        self._seen, self._slept, self._woke = math.inf, _asleep(), -math.inf

    def begin(self) -> None:
        """It is there from now on."""
        self._seen, self._slept = asyncio.get_running_loop().time(), _asleep()

    def woke(self) -> float:
        """When it was there again after it had stood still last, on the clock of the loop; -infinity where it never did."""
        now, slept = asyncio.get_running_loop().time(), _asleep()
        if now - self._seen > self._beat + STILL or slept - self._slept > STILL:
            self._woke = now
        self._seen, self._slept = now, slept
        return self._woke


def _asleep() -> float:
    """Seconds for which this machine has slept, which the clock of a loop does not count; 0 where no clock does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic() if hasattr(time, "CLOCK_BOOTTIME") else 0.0
