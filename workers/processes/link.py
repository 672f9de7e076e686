"""One end of the socket between a pool's parent and a child."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from dspex.bus.errors import DecodeError
from dspex.workers.frames import HEAD, MOST, Frame, pack, unpack


class Link(asyncio.Protocol):
    """One end of the socket, on a loop: what comes is cut into frames, and each is handed on as it comes. No task, no thread.

    Args:
        take: called with each frame, in order. It must not raise.
        ended: called once, when the other side has closed; with the error where what it sent was no frame.
        together: what is sent on one turn of the loop goes in one piece, which costs both sides less. Not where programs
            run: one of them may keep the loop from its next turn, or end the process with the answers of others.
    """

    def __init__(
        self, take: Callable[[Frame], None], ended: Callable[[DecodeError | None], None], *, together: bool = False
    ) -> None:
        self._take, self._ended, self._together = take, ended, together
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []  # the beginning of a frame whose rest has not come
        self._missing = 0  # bytes that it needs at least
        self._wrong: DecodeError | None = None

    async def begin(self, sock: socket.socket) -> None:
        """Talk over a connected socket, on the running loop."""
        await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)

    def send(self, frame: Frame) -> None:
        """Write one frame; without effect where the link is closed. Called on the loop. Raises InvalidInput as `pack` does."""
        packed = pack(frame)
        if not self._together:
            self.write(packed)
            return
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._write_unsent)
        self._unsent.append(packed)

    def write(self, packed: bytes) -> None:
        """`send` for a frame that is packed."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packed)

    def _write_unsent(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent:
            self.write(b"".join(unsent))

    def close(self) -> None:
        """Close this end; what was sent before still goes out."""
        self._write_unsent()
        if self._transport is not None:
            self._transport.close()

    # -- what asyncio calls
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if len(data) < self._missing:  # joined at each chunk, a frame of 64 MiB would be copied hundreds of times
            self._missing -= len(data)
            return
        if len(self._parts) > 1:
            data = b"".join(self._parts)
        try:
            at, self._missing = self._cut(data)
        except DecodeError as error:
            self._wrong = error
            self._parts.clear()
            self.close()
            return
        self._parts = [data[at:]] if at < len(data) else []

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(self._wrong)

    def _cut(self, data: bytes) -> tuple[int, int]:
        """Hand the frames in `data` on: where the rest begins, and how many bytes that needs at least. Raises DecodeError."""
        at = 0
        while (start := at + HEAD.size) <= len(data):
            (size,) = HEAD.unpack_from(data, at)
            if size > MOST:
                raise DecodeError(f"a frame of {size:,} bytes, of which {MOST:,} are allowed")
            if start + size > len(data):
                return at, start + size - len(data)
            frame = unpack(data[start : start + size])
            at = start + size
            self._take(frame)
        return at, start - len(data)
