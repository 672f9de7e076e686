"""Ask a nats-server who it is, over one bare TCP connection.

For a server that is just starting a real client is too patient: it retries, reconnects and logs. Here one question is one
connection, and what comes back is what the server said.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspex.bus import subjects


@dataclass(frozen=True)
class ServerInfo:
    """`info`: the server's INFO. `jetstream`: its account information, None while JetStream does not answer."""

    info: Mapping[str, Any]
    jetstream: Mapping[str, Any] | None

    @property
    def version(self) -> str:
        return str(self.info.get("version", ""))


async def hello(host: str, port: int, *, timeout: float) -> Mapping[str, Any]:
    """The INFO that a server sends to everyone, before login and TLS. Raises as `ask`."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            return await _info(reader)
        finally:
            writer.close()


async def ask(host: str, port: int, *, user: str | None = None, password: str | None = None, timeout: float) -> ServerInfo:
    """Connect, log in, ask JetStream. Raises OSError, TimeoutError, EOFError, or ValueError with the server's refusal."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            return await _talk(reader, writer, user, password)
        finally:
            writer.close()


async def _talk(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: str | None, password: str | None
) -> ServerInfo:
    info = await _info(reader)
    login = {"verbose": False, "pedantic": False, "lang": "dspex", "version": "0", "headers": True, "no_responders": True}
    if user:
        login |= {"user": user, "pass": password or ""}
    ask = f"SUB _INBOX.probe 1\r\nPUB {subjects.ACCOUNT_INFO} _INBOX.probe 0\r\n\r\n"
    writer.write(f"CONNECT {json.dumps(login)}\r\n{ask}".encode())
    while True:
        line = await _line(reader)
        if line.startswith(b"MSG "):
            answer = json.loads(await reader.readexactly(int(line.split()[-1])))
            return ServerInfo(info, None if "error" in answer else answer)
        if line.startswith(b"HMSG "):  # no responders: no JetStream here, or not yet
            return ServerInfo(info, None)
        if line.startswith(b"-ERR"):
            raise ValueError(line.removeprefix(b"-ERR ").decode().strip(" '\r\n"))
        if line.startswith(b"PING"):
            writer.write(b"PONG\r\n")


async def _info(reader: asyncio.StreamReader) -> dict[str, Any]:
    info: dict[str, Any] = json.loads((await _line(reader)).removeprefix(b"INFO "))
    return info


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line:
        raise EOFError("the server closed the connection")
    return line.rstrip(b"\r\n")
