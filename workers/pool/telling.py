"""What a caller is told of its call before the result: pieces of text as the model writes them, and what the program says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import inf
from typing import Final

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.bus.records import CallRequest
from dspex.bus.serving.sayings import ACCEPTED, SAID, Said, Saying

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")

EVERY: Final = 0.01  # seconds between two messages of one call; the first goes out at once
MOST: Final = 1 << 13  # characters that wait, of one call: at most 32 KiB, which any server takes in a message
_PIECE: Final = MOST >> 1
_FIELDS: Final = 256  # outputs of one call of which pieces are told
_NOTHING: Final = Said("", 0, "")
WATCHED: Final = 2.5  # seconds for which somebody counts as watching
_TOGETHER: Final = 0.4  # seconds: what is said meanwhile goes to a watcher together
_WATCHERS: Final = 100
_LINES: Final = 50  # in one message, of at most 4,096 characters each
_MARK: Final = 8  # characters that a piece counts besides its own


@dataclass(eq=False)
class Asker:
    """Who waits for a call.

    Attributes:
        work, packed: its request. reply: where it hears. told: it has its result.
        telling: what it is told with before that; None: nothing is.
        plain: it speaks JSON, and is told of nothing but its result; see plain.py.
    """

    work: CallRequest
    packed: bytes
    reply: str
    telling: Telling | None = None
    told: bool = False
    plain: bool = False

    def accept(self, bus: Bus, worker: str, free: int, waiting: int, reply: str = "") -> None:
        """Tell that a worker has the call. `free`: slots; `waiting`: calls for one. `reply`: who asks whether it has. Raises
        BusError.
        """
        said = {"kind": ACCEPTED, "call": self.work.call, "worker": worker, "free": free, "waiting": waiting}
        bus.tell(reply or self.reply, codecs.msgpack_bytes(said), headers={subjects.KIND: ACCEPTED})

    def asks_again(self, message: Message) -> bool:
        """Whether a request is this one: the same, from the same connection, all of whose inboxes begin alike."""
        return not self.plain and message.data == self.packed and self.hears_at(message.reply)

    def hears_at(self, reply: str) -> bool:
        """Whether an inbox is one of the connection that asked."""
        connection = self.reply.rpartition(".")[0]
        return "." in connection and reply.startswith(f"{connection}.")


class Telling:
    """Tells one caller. Nothing here waits: what cannot be sent now, because the server takes nothing or is not there, is left
    out. The caller sees by their places that pieces are missing, and has the text from the result.

    So a caller that reads slowly, or is gone, holds up nobody: what it does not take is the server's to drop.
    """

    def __init__(self, bus: Bus, reply: str) -> None:
        self._bus, self._reply = bus, reply
        self._loop = asyncio.get_running_loop()
        self._written: dict[str, int] = {}  # characters of each field so far
        self._waiting: list[Said] = []
        self._size = self._number = 0  # characters that wait; messages that were sent
        self._sent = -inf  # when the last one was
        self._timer: asyncio.TimerHandle | None = None

    def chunk(self, field: str, text: str) -> None:
        """The next piece of an output's text."""
        if field in self._written or len(self._written) < _FIELDS:
            at = self._written.get(field, 0)
            self._written[field] = at + len(text)
            for begin in range(0, len(text), _PIECE):
                self._add(field, at + begin, text[begin : begin + _PIECE])

    def status(self, text: str) -> None:
        """What the program says."""
        self._add("", 0, text[:_PIECE])

    def move(self, reply: str) -> None:
        """The caller hears there from now on."""
        self._reply = reply

    def end(self) -> None:
        """The result comes next."""
        if self._timer is not None:
            self._timer.cancel()
        self._send()

    def _add(self, field: str, at: int, text: str) -> None:
        if self._size + len(text) + _MARK > MOST:
            if self._bus.clogged:
                return
            self._send()
        last, begin, before = self._waiting[-1] if self._waiting else _NOTHING
        if field and field == last and begin + len(before) == at:
            self._waiting[-1] = Said(field, begin, before + text)
        else:
            self._waiting.append(Said(field, at, text))
            self._size += _MARK
        self._size += len(text)
        if self._timer is None:
            self._send_soon()

    def _send_soon(self) -> None:
        self._timer = None
        wait = EVERY if self._bus.clogged else self._sent + EVERY - self._loop.time()
        if not self._waiting or wait <= 0:
            self._send()
        else:
            self._timer = self._loop.call_later(wait, self._send_soon)

    def _send(self) -> None:
        said, self._waiting, self._size = self._waiting, [], 0
        if not said or self._bus.clogged:
            return
        self._number += 1
        self._sent = self._loop.time()
        try:
            self._bus.tell(self._reply, Saying(self._number, said).pack(), headers={subjects.KIND: SAID})
        except BusError as error:
            log.debug("a caller was not told", why=error.message)


class Watchers:
    """Who watches the calls of an operator (`dspex watch topology/node`), and is told what their programs say.

    Most of the time nobody does, and then it costs a look at an empty table. A watcher says so every second, and is forgotten
    when it has not: so nothing has to be taken back, and a worker answers no more often than the server lets it.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus, self._loop = bus, asyncio.get_running_loop()
        self._until: dict[str, dict[str, float]] = {}  # operator → where who watches it hears → until
        self._waiting: dict[str, list[dict[str, str]]] = {}

    def watch(self, node: str, reply: str) -> bool:
        """Somebody watches an operator, "topology/node". Whether that is new, and so has not heard what was said before."""
        now = self._loop.time()
        kept = {of: {to: until for to, until in them.items() if until > now} for of, them in self._until.items()}
        self._until = {of: them for of, them in kept.items() if them}
        if sum(map(len, self._until.values())) >= _WATCHERS:
            return False
        new = reply not in self._until.setdefault(node, {})
        self._until[node][reply] = now + WATCHED
        return new

    def said(self, work: CallRequest, text: str, only: str = "") -> None:
        """What a program says, as it may be shown. `only`: who is told; all who watch when left out."""
        if not self._until or (watching := self._until.get(f"{work.topology}/{work.node}")) is None:
            return
        line = {"call": work.call, "run": work.run, "node": f"{work.topology}/{work.node}", "text": text[:_PIECE]}
        for reply, until in watching.items():
            if until > self._loop.time() and only in ("", reply):
                waiting = self._waiting.setdefault(reply, [])
                if not waiting:
                    self._loop.call_later(_TOGETHER, self._tell, reply)
                if len(waiting) < _LINES:
                    waiting.append(line)

    def _tell(self, reply: str) -> None:
        try:
            self._bus.tell(reply, orjson.dumps(self._waiting.pop(reply)))
        except BusError as error:
            log.debug("a watcher was not told", why=error.message)
