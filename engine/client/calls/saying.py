"""What the programs of an operator say while they work: `dspex watch topology/node`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import orjson
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError
from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.engine.client.resolve import Nodes

AGAIN: Final = 1.0  # seconds between two words that somebody watches; a worker forgets who says nothing for longer than two
_MOST: Final = 1000  # lines that nobody has taken yet; the oldest go


@dataclass(frozen=True)
class NodeStatus:
    """What a program says of a call (`context().status`). `time`: when it was heard. `node`: "topology/node"."""

    time: datetime
    node: str
    run: str
    call: str
    text: str

    def as_dict(self) -> dict[str, object]:
        """The `--json` object."""
        return {"kind": "progress", **vars(self), "time": self.time.isoformat()}


class _Line(TypedDict):
    call: str
    run: str
    node: str
    text: str


async def said_of(bus: Bus, nodes: Nodes, node: str) -> AsyncGenerator[NodeStatus]:
    """See `Client.statuses`."""
    asked, _ = await nodes.resolve(bus, node)
    found, news = deque[NodeStatus](maxlen=_MOST), asyncio.Event()

    def hear(message: Message) -> None:
        now = datetime.now(UTC)
        try:
            lines = checked(list[_Line], "what a worker says", orjson.loads(message.data or b"[]"))
        except (DecodeError, ValueError):
            return  # no worker wrote it; and where no process of the pool is there, it is empty
        found.extend(NodeStatus(now, node, line["run"], line["call"], line["text"]) for line in lines if line["node"] == node)
        news.set()

    inbox, word = bus.inbox(hear), orjson.dumps({"kind": "watch", "node": node})
    try:
        while True:
            await bus.send(subjects.control(nodes.app, asked.pool), word, reply=inbox.subject)
            try:
                async with asyncio.timeout(AGAIN):
                    await news.wait()
            except TimeoutError:
                continue
            news.clear()
            while found:
                yield found.popleft()
    finally:
        inbox.close()
