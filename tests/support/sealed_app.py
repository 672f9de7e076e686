"""An application with sealed payloads, on a real server. Each part has a connection of its own, with the key or without."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from dspex.bus import nats, subjects
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus
from dspex.bus.port import Delivery
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.ciphers import Wrapping
from dspex.bus.serving.keys.keyring import Keyring
from dspex.bus.serving.record_store import RecordStore
from dspex.bus.serving.work_loop import Job, WorkLoop
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

POOL = "lightweight"
KEYS: Mapping[str, str] = {name: secrets.token_hex(32) for name in ("KEY", "OLD", "THIRD", "FOURTH")}
CARD, LARGE = "4929-1111-2222-3333", "x" * 500


class Sealed:
    """An application whose payloads are sealed: an engine and a worker with the key, and clients."""

    def __init__(self, url: str, app: str, stack: AsyncExitStack) -> None:
        self._url, self.app, self._stack = url, app, stack

    async def bus(self, named: str | None = "KEY") -> NatsBus:
        """A connection with a key, or without."""
        bus = await nats.connect(self._url)
        self._stack.push_async_callback(bus.close)
        if named is not None:
            bus.sealing = Keyring(bus, self.app, named, KEYS)
        return bus

    async def client(self, named: str | None = "KEY") -> Client:
        return Client(bus=await self.bus(named), app=self.app)

    def topology(self) -> Topology:
        topology = Topology("asking")
        source = topology.source(f"{self.app}.in")
        source.filter("len(text) < 900", name="short").predict("text -> answer", name="ask", retry={"attempts": 1}).sink(
            f"{self.app}.out"
        )
        return topology

    async def engine(self, named: str | None = "KEY") -> Host:
        host = Host(await self.bus(named), self.app, [self.topology().graph], engine="a", claim_check_above=400)
        await host.start()
        self._stack.push_async_callback(host.drain)
        return host

    async def worker(self, named: str | None = "KEY") -> WorkLoop:
        """Answers with what it was asked; `fail` in the text makes it fail."""
        bus, failures = await self.bus(named), list[BaseException]()

        async def answer(request: CallRequest) -> CallRecord:
            to, text = request.record, request.inputs["text"]
            assert to is not None
            names = (request.call, request.try_number, request.attempt, request.topology, request.node, to.number, to.event)
            if "fail" in text:
                return CallRecord(*names, error={"type": "ProgramError", "message": f"cannot: {text}"})
            return CallRecord(*names, {"answer": text})

        def accept(request: CallRequest, delivery: Delivery) -> Job:
            return partial(answer, request)

        records = RecordStore(bus, self.app, POOL, 400)
        worker = WorkLoop(bus, self.app, POOL, accept, free=lambda: 9, failed=failures.append, records=records)
        worker.start()
        self._stack.push_async_callback(worker.drain, 10.0)
        return worker


async def everything(bus: NatsBus, app: str) -> list[Message]:
    """What is stored for an application, as it lies there."""
    names = [subjects.stream(app), subjects.sources(app), subjects.keys(app), f"OBJ_{subjects.objects(app)}"]
    infos = [info for name in names if (info := await bus.stream(name)) is not None]
    return [m for info in infos for m in await bus.scan(info.name, [">"], start=1, stop=info.last)]


async def of(client: Client, pattern: str, stream: str = "") -> list[Any]:
    """The data of the events on a subject, as a client with the key sees them."""
    info = await client.bus.stream(stream or subjects.stream(client.app))
    stored = await client.bus.scan(info.name, [pattern], start=1, stop=info.last) if info is not None else []
    whole = [await payloads.checked_out(client.bus, client.app, m) for m in stored]
    return [m.data for m in whole if m is not None]


async def letters(client: Client) -> list[Any]:
    return [letter async for letter in client.dead_letters("*")]


async def count(what: Callable[[], Awaitable[list[Any]]], number: int) -> bool:
    return len(await what()) == number


async def is_now(found: Callable[[], Awaitable[Any]], wanted: object) -> bool:
    return bool(await found() == wanted)


def name_of(session: str, named: str = "KEY") -> str:
    """The name of the key of a session."""
    return Wrapping.of(KEYS[named].encode()).name_of(session)
