"""A TCP proxy in front of the server whose connections can be cut in the middle of a message, held up, or made slow."""

from __future__ import annotations

import asyncio
from urllib.parse import urlparse

UNDER_WAY = 1000  # chunks


class WireCutter:
    """Forwards bytes both ways. `cut` aborts every connection; `hold` keeps bytes back until `let_go`; `refuse` lets no
    connection live until `accept`.

    Attributes:
        round_trip: seconds that an answer takes longer than without the proxy.
    """

    def __init__(self, url: str, *, round_trip: float = 0.0) -> None:
        self.round_trip = round_trip
        self._target = urlparse(url)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refuses = False

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._listener.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()

    def cut(self) -> int:
        """Abort all connections, whatever is under way; how many."""
        ends = len(self._open)
        for writer in list(self._open):
            writer.transport.abort()
        return ends // 2

    def hold(self) -> None:
        self._flowing.clear()

    def let_go(self) -> None:
        self._flowing.set()

    def refuse(self) -> None:
        self._refuses = True
        self.cut()

    def accept(self) -> None:
        self._refuses = False

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection(self._target.hostname, self._target.port)
        except OSError:  # the server is down: then nobody answers here either
            writer.transport.abort()
            return
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._forward(source, sink, (writer, there[1])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, both: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        self._open.add(sink)
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(UNDER_WAY)
        arriving = asyncio.create_task(self._arrive(under_way, sink))
        try:
            while (chunk := await source.read(1 << 16)) and not arriving.done():
                await self._flowing.wait()
                await under_way.put((asyncio.get_running_loop().time() + self.round_trip / 2, chunk))
        except OSError:
            pass  # one end is gone, so the other one goes too
        finally:
            self._open.discard(sink)
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)
            for writer in both:
                writer.transport.abort()

    async def _arrive(self, under_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        """What is under way arrives one after another, each at its time."""
        while True:
            due, chunk = await under_way.get()
            if (left := due - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(left)
            sink.write(chunk)
            await sink.drain()
