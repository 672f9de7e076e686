"""How a pool's parent and its children talk: MessagePack maps over a socket pair, each with its length in front.

A socket of their own, not stdin and stdout: a program that prints would write into the frames, and a program that closes
stdin would look like a dead parent.

    parent → child   {"op": "config", ...}  once, first
                     {"op": "call", "id", "work", "local"}  ·  {"op": "cancel", "id"}  ·  {"op": "stop"}
    child → parent   {"op": "hello", "pid", "dspy_version", "python", "found", "failed"}  or  {"op": "fatal", "error"}
                     {"op": "done", "id", ...}  ·  {"op": "status", "id", "text"}
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

from dspex.bus import codecs

Frame = dict[str, Any]
_HEAD = struct.Struct(">I")


def pack(frame: Mapping[str, Any]) -> bytes:
    """A frame as it goes over the socket."""
    body = codecs.msgpack_bytes(dict(frame))
    return _HEAD.pack(len(body)) + body


def _unpack(body: bytes) -> Frame:
    frame: Frame = codecs.decode(body, codecs.MSGPACK)
    return frame


async def read(stream: asyncio.StreamReader) -> Frame | None:
    """The next frame; None when the other side is gone."""
    try:
        (size,) = _HEAD.unpack(await stream.readexactly(_HEAD.size))
        return _unpack(await stream.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class Pipe:
    """The child's end: blocking, safe from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, frame: Mapping[str, Any]) -> None:
        """Write one frame. Waits while the parent does not read."""
        data = pack(frame)
        with self._lock:
            self._sock.sendall(data)

    def receive(self) -> Frame | None:
        """The next frame; None when the parent is gone."""
        head = self._exactly(_HEAD.size)
        body = self._exactly(_HEAD.unpack(head)[0]) if head else None
        if body is None:
            return None
        return _unpack(body)

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            try:
                part = self._sock.recv(size - len(data))
            except ConnectionError:
                return None
            if not part:
                return None
            data += part
        return bytes(data)
