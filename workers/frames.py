"""How a pool's parent and its children talk: MessagePack maps over a socket pair, each with its length in front.

A socket of their own, not stdin and stdout: a program that prints would write into the frames, and a program that closes
stdin would look like a dead parent.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from dspex.bus import codecs
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError
from dspex.bus.records import Usage
from dspex.bus.serving import payloads
from dspex.workers.answer import Answer, ErrorMap
from dspex.workers.config import PoolConfig

_HEAD = struct.Struct(">I")
MOST = 3 * payloads.MOST  # bytes of a frame: what a call is given, with the event that it is for, or what it gives


# -- parent → child --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class StartFrame:
    """The first frame. `parent`: process id; the child ends with it."""

    parent: int
    pool: PoolConfig


@dataclass(frozen=True)
class CallFrame:
    """Answer a call. `work`: packed; `local`: where the local model's server is, if the call may need it."""

    id: int
    work: bytes
    local: str | None = None


@dataclass(frozen=True)
class CancelFrame:
    """Give a call up."""

    id: int


@dataclass(frozen=True)
class StopFrame:
    """Let nothing more run, and end."""


# -- child → parent --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class HelloFrame:
    """The child is ready. `found`: refs of the programs that it can run; `failed`: why not, by pattern of the allow-list.

    `limited`: the system refuses it more memory than its pool allows.
    """

    pid: int = 0
    dspy_version: str = ""
    python: str = ""
    found: list[str] = field(default_factory=list[str])
    failed: Mapping[str, str] = field(default_factory=dict[str, str])
    limited: bool = False


@dataclass(frozen=True)
class FatalFrame:
    """The child cannot run: a setting is wrong, or something is not installed."""

    error: ErrorMap


@dataclass(frozen=True)
class StatusFrame:
    """What a program says about a call that it is running."""

    id: int
    text: str


@dataclass(frozen=True)
class DoneFrame:
    """The end of a call."""

    id: int
    answer: Answer


Frame = StartFrame | CallFrame | CancelFrame | StopFrame | HelloFrame | FatalFrame | StatusFrame | DoneFrame
_TYPES: Mapping[str, type[Frame]] = {
    "start": StartFrame,
    "call": CallFrame,
    "cancel": CancelFrame,
    "stop": StopFrame,
    "hello": HelloFrame,
    "fatal": FatalFrame,
    "status": StatusFrame,
    "done": DoneFrame,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}


def pack(frame: Frame) -> bytes:
    """A frame as it goes over the socket. Raises InvalidInput for a value that MessagePack cannot hold."""
    body = codecs.msgpack_bytes({"type": _NAMES[type(frame)], **vars(frame)})
    return _HEAD.pack(len(body)) + body


def _unpack(body: bytes) -> Frame:
    """A frame. A program may write anything to the socket of its process: raises DecodeError for what is none."""
    raw = codecs.decode(body, codecs.MSGPACK)
    kind = _TYPES.get(str(raw.pop("type", ""))) if isinstance(raw, dict) else None
    if kind is None:
        raise DecodeError("not a frame of dspex")
    try:
        if kind is StartFrame:
            return StartFrame(raw["parent"], PoolConfig.from_plain(raw["pool"]))
        if kind is DoneFrame:
            answer = raw["answer"]
            if answer["usage"] is not None:
                answer["usage"] = Usage(**checked(Usage, "a frame", answer["usage"]))
            raw["answer"] = Answer(**checked(Answer, "a frame", answer))
        return kind(**checked(kind, "a frame", raw))
    except (KeyError, TypeError) as e:
        raise DecodeError(f"not a frame of dspex: {e!r}") from None


async def read(stream: asyncio.StreamReader) -> Frame | None:
    """The next frame; None when the other side has closed. Raises DecodeError for what is no frame."""
    try:
        (size,) = _HEAD.unpack(await stream.readexactly(_HEAD.size))
        if size > MOST:
            raise DecodeError(f"a frame of {size:,} bytes, of which {MOST:,} are allowed")
        return _unpack(await stream.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class Pipe:
    """The child's end: blocking, safe from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, frame: Frame) -> None:
        """Write one frame. Waits while the parent does not read. Raises InvalidInput as `pack` does."""
        data = pack(frame)
        with self._lock:
            self._sock.sendall(data)

    def receive(self) -> Frame | None:
        """The next frame; None when the parent has ended."""
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
