"""A TCP proxy in front of the server that keeps back what the client sends from some words on."""

from __future__ import annotations

import asyncio
from urllib.parse import urlparse


class KeepsBack:
    """Forwards bytes both ways. `keep_back` waits for words of the client's, and keeps back what it sends from there on.

    Attributes:
        kept: set once something is kept back.
    """

    def __init__(self, url: str) -> None:
        self.kept = asyncio.Event()
        self._target, self._words = urlparse(url), b""
        self._flowing = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    def keep_back(self, words: bytes) -> None:
        self.kept.clear()
        self._flowing.clear()
        self._words = words

    def let_go(self) -> None:
        self._words = b""
        self._flowing.set()

    async def cut(self) -> None:
        """Abort all connections; what was kept back never arrives, and new ones forward all."""
        self._words = b""
        for writer in list(self._open):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self) -> None:
        self._listener.close()
        await self.cut()
        await self._listener.wait_closed()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._target.hostname, self._target.port)
        for source, sink, ours in ((reader, there[1], True), (there[0], writer, False)):
            self._open.add(sink)
            task = asyncio.create_task(self._forward(source, sink, ours))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, from_client: bool) -> None:
        try:
            while chunk := await source.read(1 << 16):
                at = chunk.find(self._words) if from_client and self._words else -1
                if at >= 0:
                    at = chunk.rfind(b"\n", 0, at) + 1  # the whole command
                    sink.write(chunk[:at])
                    chunk = chunk[at:]
                    self.kept.set()
                    await self._flowing.wait()
                sink.write(chunk)
                await sink.drain()
        except OSError:
            pass  # one end is gone, so the other one goes too
        finally:
            self._open.discard(sink)
            sink.transport.abort()
