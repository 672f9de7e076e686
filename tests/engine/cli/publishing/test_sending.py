"""Many rows in flight, on the bus in memory, which loses answers on purpose."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from dspex.bus import nats
from dspex.bus.errors import DspexError, StreamFull
from dspex.bus.local.server import LocalServer
from dspex.bus.memory.server import Faults, MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import StreamConfig
from dspex.bus.serving.keys.keyring import Keyring
from dspex.bus.serving.payloads import ABOVE
from dspex.engine.cli.events.rows import EventOptions, Ready, RowSource
from dspex.engine.cli.events.sending import Sending
from dspex.engine.cli.events.tables.row import Row
from dspex.engine.cli.events.tables.table import HowToRead
from dspex.engine.cli.terminal.progress import NoBar
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.engine.client.client import Client


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.close()


class Sent:
    """What became of some rows, sent over a bus with faults."""

    def __init__(self, loop: VirtualLoop, rows: list[Row], faults: Faults, *, seed: int = 0, **config: int) -> None:
        self.server = MemoryServer(seed=seed)
        self.sending: Sending
        out, self.err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(self.err):
            loop.run(self._main(rows, faults, config), advance=True)
        self.data = [m.data for m in self.server.streams["S"].messages.values()]

    async def _main(self, rows: list[Row], faults: Faults, config: dict[str, int]) -> None:
        bus = self.server.connect()
        await bus.ensure_stream(StreamConfig("S", ["s.>"], **config))
        self.server.luck.faults = faults
        source = RowSource((), "rows.csv", HowToRead(), EventOptions("s.a"))

        async def batches() -> AsyncIterator[list[Ready | DspexError]]:
            yield list(source.ready(rows, "digest"))

        self.sending = Sending(Terminal(), Client(bus=bus, app="a"), ABOVE, None, keep=False, ids={})
        await self.sending.send(batches(), NoBar())
        self.server.luck.faults = Faults()


def rows(count: int, size: int = 0) -> list[Row]:
    return [Row(f"rows.csv:{i + 2}", i + 1, {"n": i, "x": "x" * size}) for i in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_each_row_is_stored_once_though_answers_are_lost_and_the_server_is_away(loop: VirtualLoop, seed: int) -> None:
    sent = Sent(loop, rows(600), Faults(unsettled=0.1, disconnect=0.05), seed=seed)
    assert sent.sending.fatal is None
    assert sorted(sent.data) == sorted(b'{"n":%d,"x":""}' % i for i in range(600))
    assert (sent.sending.stored, sent.sending.faults) == (600, 0)


def test_what_was_sent_twice_by_one_command_is_no_duplicate(loop: VirtualLoop) -> None:
    sent = Sent(loop, rows(600), Faults(unsettled=0.2), seed=3)
    assert (sent.sending.stored, sent.sending.duplicates) == (600, 0)


def test_a_full_stream_stops_the_file_and_says_how_much_is_stored(loop: VirtualLoop) -> None:
    sent = Sent(loop, rows(700), Faults(), max_messages=30)
    assert isinstance(sent.sending.fatal, StreamFull)
    assert (sent.sending.stored, len(sent.data)) == (30, 30)


def test_rows_that_come_now_and_then_are_told_before_the_next_ones_come(loop: VirtualLoop) -> None:
    told: list[int] = []

    async def main() -> None:
        bus = MemoryServer().connect()
        await bus.ensure_stream(StreamConfig("S", ["s.>"]))
        source = RowSource(("-",), None, HowToRead(), EventOptions("s.a"))
        sending = Sending(Terminal(), Client(bus=bus, app="a"), ABOVE, None, keep=False, ids={})

        async def batches() -> AsyncIterator[list[Ready | DspexError]]:
            for number in (1, 2, 3):
                yield list(source.ready(rows(number), None))
                told.append(sending.stored)

        await sending.send(batches(), NoBar(), live=True)

    loop.run(main(), advance=True)
    assert told == [1, 3, 6]


def test_rows_of_any_size_keep_their_order(loop: VirtualLoop) -> None:
    sizes = [0, 300_000, 10, 200_000, 1_500_000, 0, 0, 262_144]
    given = [row for i, size in enumerate(sizes) for row in [Row(f"r:{i}", i, {"n": i, "x": "x" * size})]]
    sent = Sent(loop, given, Faults())
    assert sent.sending.stored == len(sizes)
    assert [len(data) > 0 for data in sent.data] == [size < 262_000 for size in sizes]  # what is large lies in the object store


def test_an_event_costs_a_client_one_question_to_the_server(loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Awaited one by one, that is what publishing takes."""
    asked: list[str] = []
    trip = MemoryBus.trip

    async def counted(bus: MemoryBus) -> None:
        asked.append("")
        await trip(bus)

    async def main() -> int:
        bus = MemoryServer().connect()
        await bus.ensure_stream(StreamConfig("S", ["s.>"]))
        client = Client(bus=bus, app="a")
        await client.publish("s.a", {"n": 0})  # the first also asks whether the application seals
        monkeypatch.setattr(MemoryBus, "trip", counted)
        for n in range(10):
            await client.publish("s.a", {"n": n})
        return len(asked)

    assert loop.run(main(), advance=True) == 10


@pytest.mark.asyncio
async def test_a_server_that_is_started_anew_in_the_midst_of_a_file_has_each_row_once_and_in_order(tmp_path: Path) -> None:
    source = RowSource((), "rows.csv", HowToRead(), EventOptions("s.a"))
    ready = list(source.ready(rows(3000), "digest"))
    async with LocalServer(tmp_path / "jetstream", port=None) as server:
        bus = await nats.connect(server.url)
        await bus.ensure_stream(StreamConfig("S", ["s.>"]))

        async def batches() -> AsyncIterator[list[Ready | DspexError]]:
            for start in range(0, 3000, 500):
                if start == 1500:  # what is in flight is answered, or not
                    await server.stop()
                    await server.start()
                yield ready[start : start + 500]

        sending = Sending(Terminal(), Client(bus=bus, app="a"), ABOVE, None, keep=False, ids={})
        await sending.send(batches(), NoBar())
        found = await bus.scan("S", ["s.>"], start=1, stop=10_000)
        await bus.close()
    assert (sending.fatal, sending.faults, sending.stored) == (None, 0, 3000)
    assert [m.data for m in found] == [b'{"n":%d,"x":""}' % i for i in range(3000)]


def test_rows_of_an_application_that_seals_are_sealed_and_the_same_row_again_is_a_duplicate(loop: VirtualLoop) -> None:
    server = MemoryServer()

    async def main() -> list[int]:
        bus = server.connect()
        await bus.ensure_stream(StreamConfig("S", ["s.>"]))
        keyring = Keyring(bus, "a", "KEY", {"KEY": "k" * 64})
        await keyring.establish(1)
        bus.sealing = keyring
        source = RowSource((), "rows.csv", HowToRead(), EventOptions("s.a", id="n"))
        ready = list(source.ready([*rows(600), *rows(1)], "digest"))

        async def batches() -> AsyncIterator[list[Ready | DspexError]]:
            yield list(ready)

        sending = Sending(Terminal(quiet=True), Client(bus=bus, app="a"), ABOVE, None, keep=False, ids={"0": "rows.csv:2"})
        await sending.send(batches(), NoBar())
        return [sending.stored, sending.duplicates, sending.faults]

    assert loop.run(main(), advance=True) == [601, 1, 0]
    stored = server.streams["S"].messages.values()
    assert len(stored) == 600
    assert not any(b'"x"' in m.data for m in stored)
