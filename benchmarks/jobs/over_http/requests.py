"""A client of HTTP/1.1 that costs little, so that the server alone is measured. Connections stay, one request on each."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit


class Requests:
    """Posts JSON to a server."""

    def __init__(self, url: str) -> None:
        self.url, where = url, urlsplit(url)
        self._host, self._port = str(where.hostname), int(where.port or 80)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, data: Any, accept: str = "application/json", *, wanted: bytes = b"") -> bytes:
        """The body of the answer. `wanted`: what must be in it."""
        body = json.dumps(data).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\nAccept: {accept}\r\n"
        reader, writer = await self._connection()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        said = await reader.readuntil(b"\r\n\r\n")
        found = await _body(reader, said.lower())
        if not said.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")) or wanted not in found:
            raise RuntimeError(f"{path}: {said[:40]!r} {found[:300]!r}")
        self._idle.append((reader, writer))
        return found

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # else the server has closed it, after some seconds without a request
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    async def close(self) -> None:
        """End the connections."""
        for _, writer in self._idle:
            writer.close()
            with suppress(ConnectionError):  # the server was first
                await writer.wait_closed()


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return await reader.readexactly(int(line[15:]))
    found = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        found += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return found
