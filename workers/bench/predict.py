"""What a call of a model costs beside the time on the wire, for `dspex bench native`.

The wire is the least that any client can do: the same bytes, on one open connection of asyncio, to the same server. Each
side is compared with its own bytes. What is left of a call without it is formatting, the HTTP client, and parsing.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlsplit

from dspex.workers.bench import native_side
from dspex.workers.bench.cases import SHORT
from dspex.workers.bench.measure import FEWEST, Timing, quiet, timing
from dspex.workers.bench.rows import Measurement, check
from dspex.workers.bench.worker import Worker, by_dspy

BATCH = 5e-3  # seconds in which one side calls again and again
Request = Callable[[], Awaitable[object]]


class Wire(asyncio.Protocol):
    """A connection that sends bytes and waits for the answer to them."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport  # the loop gives it before anything else

    @classmethod
    async def open(cls, url: str) -> Wire:
        """A connection to the server of `url`."""
        where = urlsplit(url)
        _, made = await asyncio.get_running_loop().create_connection(cls, where.hostname or "", where.port or 80)
        return made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, whole, body = self._buffer.partition(b"\r\n\r\n")
        if whole and self._answer and len(body) >= int(head.rpartition(b": ")[2]):  # the server writes the length last
            answer, self._answer, self._buffer = self._answer, None, b""
            answer.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the benchmark's model server closed the connection"))

    async def send(self, request: bytes) -> bytes:
        """The body of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    async def last(self) -> bytes:
        """The last request that the server got, from any client."""
        return await self.send(b"GET /last HTTP/1.1\r\nHost: bench\r\n\r\n")

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


@dataclass(frozen=True)
class _Ask:
    """What is asked of the model's server. `calls`: how DSPy is called, "sync" or "acall"."""

    name: str
    kind: str
    model: str
    calls: str


_ASKED = (
    _Ask("predict", "predict", "gpt-4o-mini", "sync"),
    _Ask("predict, acall", "predict", "gpt-4o-mini", "acall"),
    _Ask("chain of thought, acall", "chain_of_thought", "gpt-4o", "acall"),
)
TARGET = 10
NOTE = "less the time on the wire; answers from a cache are not compared: DSPy has one, dspex has none yet"
INPUTS = {"question": "What is the capital of France?"}


def names() -> list[str]:
    """The operations, as their rows are called."""
    return [ask.name for ask in _ASKED]


async def rows(url: str, seconds: float, asked: Worker | None) -> AsyncIterator[Measurement]:
    """What Predict and ChainOfThought cost beside the wire; with `asked`, DSPy's too, here and in a worker."""
    wire = await Wire.open(url)
    try:
        for ask in _ASKED:
            yield await _row(ask, url, wire, seconds, asked)
    finally:
        wire.close()


async def _row(ask: _Ask, url: str, wire: Wire, seconds: float, asked: Worker | None) -> Measurement:
    async with native_side.predict(ask.kind, url, ask.model) as ours:
        result, request = await ours(INPUTS), await wire.last()
        sides: dict[str, Request] = {"ours": partial(ours, INPUTS), "wire": partial(wire.send, request)}
        row = Measurement(ask.name, "predict", TARGET, note=NOTE)
        if asked is None:
            found = await measure(sides, seconds)
            return replace(row, ours=found["ours"].less(found["wire"]), wire=found["wire"])
        from dspex.workers.dspy import bench as dspy_side

        theirs = dspy_side.predict(ask.kind, url, ask.model, ask.calls)
        expected, again = await theirs(INPUTS), await wire.last()
        check(f"the answer of {ask.name}", result, expected)
        check(f"the prompt of {ask.name}", _prompt(request), _prompt(again))
        spec = by_dspy(ask.kind, SHORT, ask.model)
        outputs, _ = await asked.call(spec, INPUTS)
        check(f"{ask.name}, through a worker", outputs, expected)
        sides |= {"theirs": partial(theirs, INPUTS), "their wire": partial(wire.send, again)}
        found = await measure({**sides, "worker": partial(asked.call, spec, INPUTS)}, seconds * len(sides))
    return replace(
        row,
        peer="DSPy",
        ours=found["ours"].less(found["wire"]),
        wire=found["wire"],
        theirs=found["theirs"].less(found["their wire"]),
        worker=found["worker"].less(found["their wire"]),
    )


def _prompt(request: bytes) -> object:
    """The messages that a request asks with."""
    return json.loads(request.partition(b"\r\n\r\n")[2])["messages"]


async def measure(sides: Mapping[str, Request], seconds: float) -> dict[str, Timing]:
    """Time all sides, in turns, for `seconds` together (at least FEWEST rounds)."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        for _ in range(FEWEST):
            await call()
    order, end, rounds = list(sides), time.perf_counter() + seconds, 0
    with quiet():
        while rounds < FEWEST or time.perf_counter() < end:
            for name in order:
                samples[name] += await _batch(sides[name], min(BATCH, seconds / (FEWEST * len(sides))))
            order.reverse()
            rounds += 1
    return {name: timing(found) for name, found in samples.items()}


async def _batch(call: Request, limit: float) -> list[float]:
    found: list[float] = []
    gc.disable()
    try:
        end = time.perf_counter() + limit
        while not found or time.perf_counter() < end:
            began = time.perf_counter()
            await call()
            found.append(time.perf_counter() - began)
    finally:
        gc.enable()
    return found
