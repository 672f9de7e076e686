"""The server's time on a machine whose own clock may be wrong: told by the server, carried on, never set back."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dspex.bus.errors import BusError
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import BusEvents, StreamConfig, StreamInfo
from dspex.bus.serving.server_clock import JUMP, SLEW, ServerClock

HOUR = 3600.0


class Leader(MemoryBus):
    """A connection to a leader whose clock is `ahead` seconds ahead, over a wire with a round trip of `trip_time` seconds."""

    ahead = 0.0
    trip_time = 0.0

    async def stream(self, name: str) -> StreamInfo | None:
        await asyncio.sleep(self.trip_time / 2)
        info = await super().stream(name)
        await asyncio.sleep(self.trip_time / 2)
        return info and replace(info, now=info.now + self.ahead)


def leader(loop: VirtualLoop) -> Leader:
    bus = Leader(MemoryServer(), BusEvents())
    loop.run(bus.ensure_stream(StreamConfig("S", ["s"])))
    return bus


class Seen:
    """A clock, and what it says against the true time."""

    def __init__(self, loop: VirtualLoop, bus: Leader) -> None:
        self.loop, self.bus, self.clock = loop, bus, ServerClock(bus, "S")

    def ask(self) -> float:
        return self.loop.run(self.clock.ask(), advance=True)

    def ahead(self) -> float:
        async def look() -> float:
            return self.clock() - self.bus.server.now

        return round(self.loop.run(look()), 3)


def test_a_clock_says_what_the_server_says_and_goes_on_between_the_questions(loop: VirtualLoop) -> None:
    seen = Seen(loop, leader(loop))
    seen.bus.ahead = HOUR
    seen.ask()
    assert seen.ahead() == HOUR
    loop.advance(1000)
    assert seen.ahead() == HOUR


def test_half_of_the_round_trip_is_added(loop: VirtualLoop) -> None:
    seen = Seen(loop, leader(loop))
    seen.bus.trip_time = 2.0
    seen.ask()
    assert seen.ahead() == 0.0


def test_a_leader_that_is_behind_the_one_before_slows_the_clock_and_never_sets_it_back(loop: VirtualLoop) -> None:
    seen = Seen(loop, leader(loop))
    seen.bus.ahead = 5.0
    seen.ask()
    seen.bus.ahead = 0.0
    assert seen.ask() == pytest.approx(-5.0)
    assert seen.ahead() == 5.0
    loop.advance(10)
    assert seen.ahead() == pytest.approx(5.0 - 10 * SLEW)
    loop.advance(HOUR)
    assert seen.ahead() == 0.0


def test_a_small_difference_ahead_is_made_up_for_slowly_and_a_large_one_at_once(loop: VirtualLoop) -> None:
    seen = Seen(loop, leader(loop))
    seen.ask()
    seen.bus.ahead = 2.0
    seen.ask()
    assert seen.ahead() == 0.0
    loop.advance(10)
    assert seen.ahead() == pytest.approx(10 * SLEW)
    loop.advance(HOUR)
    assert seen.ahead() == 2.0
    seen.bus.ahead = 2.0 + 2 * JUMP  # this machine has slept
    seen.ask()
    assert seen.ahead() == 2.0 + 2 * JUMP


def test_what_a_slow_answer_cannot_tell_is_not_corrected(loop: VirtualLoop) -> None:
    seen = Seen(loop, leader(loop))
    seen.ask()
    seen.bus.trip_time, seen.bus.ahead = 4.0, 1.5
    seen.ask()
    loop.advance(100)
    assert seen.ahead() == 0.0


def test_a_clock_goes_on_when_the_server_does_not_answer(loop: VirtualLoop) -> None:
    seen = Seen(loop, leader(loop))
    seen.ask()
    loop.run(seen.bus.close())
    with pytest.raises(BusError):
        seen.ask()
    loop.advance(60)
    assert seen.ahead() == 0.0
