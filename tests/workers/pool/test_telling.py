"""What a pool's parent says to a caller who listens, who does not, and over a connection that takes nothing."""

from __future__ import annotations

import asyncio

import pytest
from waiting import until

from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.bus.serving.sayings import Said, Saying
from dspex.workers.pool import telling


class Heard:
    """Everything that came, in order."""

    def __init__(self) -> None:
        self.bus = MemoryServer().connect()
        self.messages: list[Saying] = []
        self.told = telling.Telling(self.bus, self.bus.inbox(self.take).subject)

    def take(self, message: Message) -> None:
        self.messages.append(Saying.unpack(message.data))

    @property
    def said(self) -> list[Said]:
        return [one for message in self.messages for one in message.said]


@pytest.mark.asyncio
async def test_the_first_piece_goes_out_at_once_and_those_that_follow_together() -> None:
    heard = Heard()
    heard.told.chunk("a", "1")
    for n in range(5):
        heard.told.chunk("a", str(n))
    heard.told.status("so far")
    heard.told.chunk("b", "x")
    heard.told.end()
    await until(lambda: len(heard.messages) == 2)
    assert heard.messages == [
        Saying(1, [Said("a", 0, "1")]),
        Saying(2, [Said("a", 1, "01234"), Said("", 0, "so far"), Said("b", 0, "x")]),
    ]


@pytest.mark.asyncio
async def test_pieces_go_out_by_themselves_a_moment_later() -> None:
    heard = Heard()
    heard.told.chunk("a", "1")
    heard.told.chunk("a", "2")
    await until(lambda: heard.said == [Said("a", 0, "1"), Said("a", 1, "2")])


@pytest.mark.asyncio
async def test_what_a_connection_does_not_take_is_bounded_left_out_and_seen_by_its_place() -> None:
    heard = Heard()
    heard.bus.clogged = True
    for _ in range(1000):
        heard.told.chunk("a", "x" * 1000)
        heard.told.status("y" * 1000)
    held = heard.told._waiting  # pyright: ignore[reportPrivateUsage]
    assert sum(len(one.text) for one in held) <= telling.MOST
    await asyncio.sleep(0)
    assert heard.messages == []
    heard.bus.clogged = False
    await until(lambda: heard.messages)
    assert heard.said[0] == Said("a", 0, "x" * 1000), "what was kept is the beginning"
    heard.told.chunk("a", "the end")
    await until(lambda: heard.said[-1] == Said("a", 1_000_000, "the end"))


@pytest.mark.asyncio
async def test_a_large_piece_is_told_in_parts_that_any_server_takes() -> None:
    heard = Heard()
    heard.told.chunk("a", "é" * 100_000)
    heard.told.end()
    await until(lambda: sum(len(one.text) for one in heard.said) == 100_000)
    assert max(len(message.pack()) for message in heard.messages) < 4 * telling.MOST + 1000
    assert [one.at for one in heard.said] == sorted({one.at for one in heard.said})


@pytest.mark.asyncio
async def test_a_caller_that_is_gone_and_a_connection_that_has_ended_hurt_nobody() -> None:
    heard = Heard()
    await heard.bus.close()
    heard.told.chunk("a", "1")
    heard.told.end()
    assert heard.messages == []
