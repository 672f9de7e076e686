"""One connection to a NATS server: nats-py's client with our own read loop.

nats-py connects, authenticates, speaks TLS and watches for a dead peer. It does not reconnect: a connection that ends is
thrown away, and `Connection` makes the next one (see there why).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from nats import errors as nats_errors
from nats.aio.client import Client

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, UnsupportedServer
from dspex.bus.nats.failures import translated
from dspex.bus.nats.protocol import WireParser, WireRoute
from dspex.bus.port import OLDEST_SERVER

_CHUNK = 1 << 18
_CLOSING = 1.0  # seconds
_MUCH = 1 << 16  # bytes that wait for the socket: where asyncio has its own limit


@dataclass(frozen=True)
class Options:
    """Where and how to connect. `creds`: path of a credentials file; `nkey`: path of a seed file; `timeout`: seconds.

    `inbox_prefix`: what the subjects begin with on which answers and deliveries come.
    """

    url: str
    name: str = "dspex"
    user: str | None = None
    password: str | None = None
    token: str | None = None
    creds: str | None = None
    nkey: str | None = None
    tls: ssl.SSLContext | None = None
    timeout: float = 5.0
    inbox_prefix: str = subjects.INBOX

    def servers(self) -> list[str]:
        """The URLs, which are separated by commas. Raises ConfigError (DX104), also for credentials that are not there."""
        urls = [u.strip() if "://" in u else f"nats://{u.strip()}" for u in self.url.split(",") if u.strip()]
        for url in urls:
            _check_url(url)
        if not urls:
            raise ConfigError("no server is named", code="DX105", fix="--server nats://host:4222")
        for path in filter(None, (self.creds, self.nkey)):
            if not Path(path).is_file():
                raise ConfigError(f"there is no credentials file {path}", code="DX105", fix="correct the path")
            if importlib.util.find_spec("nkeys") is None:
                raise ConfigError("credentials files need the package nkeys", code="DX109", fix="pip install nkeys")
        return urls


def _check_url(url: str) -> None:
    try:
        parts = urlparse(url)
        good = parts.scheme in ("nats", "tls") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        good = False
    if not good:
        raise ConfigError(f"{url!r} is not the URL of a NATS server", code="DX105", fix="nats://host:4222 or tls://…")


class WireClient(Client):
    """nats-py's client for one connection, with our own read loop. The only place that touches its private members.

    `tests/bus/nats/test_connection.py` checks that they are what we think; pyproject.toml keeps nats-py below the next minor.
    """

    def __init__(self, ended: Callable[[str], None], complained: Callable[[str], None]) -> None:
        super().__init__()
        self.routes: dict[bytes, WireRoute] = {}
        self._parser = WireParser(self.routes)
        self._ended, self._complained = ended, complained
        self._over = False
        self._echoes: set[asyncio.Future[object]] = set()
        self._unsent: list[bytes] = []
        self._size = 0  # of them

    def put(self, data: bytes) -> None:
        """Send bytes behind the next turn of the loop, with all that is put on both: one call of the system for all of it.

        What came while this turn ran is handled on the next one. To send before that costs a busy process a tenth more.
        """
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._write_soon)
        self._unsent.append(data)
        self._size += len(data)

    def _write_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        data, self._unsent, self._size = self._unsent, [], 0
        if data and not self._over:
            self._transport.write(data[0] if len(data) == 1 else b"".join(data))  # type: ignore[union-attr]

    @property
    def clogged(self) -> bool:
        """Whether so much waits for the socket that who sends should wait too."""
        waiting: int = self._transport._io_writer.transport.get_write_buffer_size()  # type: ignore[union-attr]
        return waiting + self._size > _MUCH

    async def drained(self) -> None:
        """Wait until the socket has taken most of what was put."""
        self._write()
        await self._transport.drain()  # type: ignore[union-attr]

    @property
    def echoing(self) -> bool:
        """Whether an `echo` waits."""
        return bool(self._echoes)

    async def echo(self) -> None:
        """Wait until the server has seen all that was put. Raises OSError when the connection ends."""
        pong: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._echoes.add(pong)
        self._pongs.append(pong)
        try:
            self._unsent.append(b"PING\r\n")
            self._write()  # at once: nats-py sends pings too, and each pong is taken for the oldest of them
            await pong
        finally:
            self._echoes.discard(pong)

    async def leave(self, reason: str) -> None:
        """End the connection, though it is well."""
        self._tell(reason)
        await self.close()

    @property
    def server_info(self) -> Mapping[str, Any]:
        """What the server said about itself: version, jetstream, max_payload, …"""
        return self._server_info

    async def _select_next_server(self) -> None:
        # One try: the connection picks the server. nats-py's own loop sleeps and retries inside connect().
        self._current_server = self._server_pool[0]
        await self._connect_to_server(self._current_server)

    async def _read_loop(self) -> None:
        # nats-py's loop ends silently at an unexpected error and leaves a deaf connection behind; ours always tells.
        reason = "the server closed the connection"
        try:
            while not self.is_closed and (chunk := await self._transport.read(_CHUNK)):  # type: ignore[union-attr]
                for line in self._parser.feed(chunk):
                    await self._obey(line)
        except OSError as e:
            reason = str(e)
        finally:
            self._tell(reason)
        await self._close(Client.CLOSED)

    async def _obey(self, line: bytes) -> None:
        if line == b"PING":
            self.put(b"PONG\r\n")
        elif line == b"PONG":
            # nats-py's own fails at a PONG that comes when nobody waits for it any more.
            self._pings_outstanding = 0
            if self._pongs and not (pong := self._pongs.pop(0)).done():
                pong.set_result(True)
        elif line.startswith(b"INFO "):
            await self._process_info(json.loads(line[5:]))
        elif line.startswith(b"-ERR"):
            text = line[5:].decode("utf-8", "replace").strip("' ")
            self._complained(text)
            if not text.lower().startswith("permissions violation"):  # after any other the server closes
                self._tell(text)

    def _tell(self, reason: str) -> None:
        if not self._over:
            self._over = True
            for echo in self._echoes:
                if not echo.done():
                    echo.set_exception(ConnectionResetError(reason))
            self._ended(reason)

    async def _process_op_err(self, e: Exception) -> None:
        self._tell(str(e).removeprefix("nats: "))
        await self._close(Client.CLOSED)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # abort, not close: a graceful close waits until a frozen server has taken what it will never take.
        if self._flush_queue is None:  # credentials could not be read: nothing was opened
            return
        self._pending, self._pending_data_size = [], 0
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        with suppress(TimeoutError):  # after a TLS handshake that failed, asyncio never says that it is closed
            async with asyncio.timeout(_CLOSING):
                await super()._close(status, do_cbs)
        self._tell("closed")


async def dial(options: Options, url: str, ended: Callable[[str], None], complained: Callable[[str], None]) -> WireClient:
    """One try to connect to one server. Raises Unreachable, NotAllowed, UnsupportedServer.

    `ended` is called once, with the reason why the connection ended; `complained` with each -ERR of the server.
    """
    parts = urlparse(url)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    client, o, good = WireClient(ended, complained), options, False
    try:
        async with asyncio.timeout(o.timeout):
            await client.connect(
                [url], name=o.name, user=o.user, password=o.password, token=o.token, user_credentials=o.creds,
                nkeys_seed=o.nkey, tls=o.tls, allow_reconnect=False, connect_timeout=max(1, int(o.timeout)),
                ping_interval=3, max_outstanding_pings=2, error_cb=_raised_as_well,
            )  # fmt: skip
        version = str(client.server_info.get("version", ""))
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST_SERVER:
            raise UnsupportedServer(f"nats-server {version} at {shown}: dspex needs 2.12, which has atomic batches")
        good = True
        return client
    except (OSError, TimeoutError, ValueError, nats_errors.Error) as e:
        raise translated(e, f"cannot connect to {shown}") from e
    finally:  # also when connecting is cancelled: the socket must be closed
        if not good:
            await client.close()


async def _raised_as_well(error: Exception) -> None:
    """nats-py reports a failed connect to its error callback and raises it; one is enough."""
