"""One TCP connection at a time, made again whenever it ends, with its subscriptions and the requests in flight.

Why not nats-py's own reconnect: it keeps a buffer of unsent bytes and sends them later, so a commit that was given up could
still land as a surprise; it leaves requests in flight to their timeout; and after some errors (headers and data over
max_payload, an expired token) it never reconnects at all. Here there is one path for every end: the requests fail at once,
the subscriptions stay, and the next connection starts clean.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from dspex.bus.errors import BusError, ConfigError, DspexError, NotAllowed, Unreachable, UnsupportedServer
from dspex.bus.message import new_id
from dspex.bus.nats import protocol
from dspex.bus.nats.client import Options, WireClient, dial
from dspex.bus.nats.failures import JETSTREAM_OFF, NO_LEADER, answer_of, refused, translated
from dspex.bus.nats.isolation import Isolation
from dspex.bus.nats.pending import PendingRequest, RawReply, WireSubscription, any_answer, refuse
from dspex.bus.nats.protocol import WireRoute
from dspex.bus.port import BusEvents
from dspex.bus.tasks import Tasks

_LONGEST_PAUSE = 2.0  # seconds between tries to connect


class Connection:
    """The connection of a bus: writes, requests, subscriptions. Raises `Unreachable` at once while there is none."""

    def __init__(self, options: Options, events: BusEvents) -> None:
        self.options, self.events = options, events
        self.id = new_id().replace("-", "")
        self.max_payload = (1 << 20) - protocol.RESERVE  # of the last server
        self.up = asyncio.Event()
        self.on_end: set[Callable[[], None]] = set()  # called when the connection ends
        self.closed, self.at = False, ""  # `at`: URL of the server
        self._servers = options.servers()
        self._client: WireClient | None = None
        self._left: dict[str, float] = {}  # URL → when it was left because JetStream did not answer there: tried last
        self.isolation = Isolation(self)
        self._why: DspexError = Unreachable("not connected")
        self._gone = asyncio.Event()
        self._tasks = self.tasks(self._broken)
        self._subscriptions: dict[bytes, WireSubscription] = {}
        self.pending: dict[bytes, PendingRequest] = {}  # requests without an answer yet
        self.inboxes: dict[bytes, WireRoute] = {}  # who takes answers of which there may be several
        self._count = 0
        self._answers = f"{options.inbox_prefix}.{self.id}.r"
        self.listen(f"{self._answers}.*", self._answered)

    async def start(self) -> None:
        """Connect, or say why not: Unreachable, NotAllowed, UnsupportedServer, ConfigError, BusError (no JetStream)."""
        self._attach(await self._connect())
        try:
            await self._need_jetstream()
        except DspexError:
            await self.close()
            raise
        self._tasks.start(self._keep(), "connection")

    # -- the connection
    async def _connect(self) -> WireClient:
        failure: DspexError = self._why
        shuffled = random.sample(self._servers, len(self._servers))
        for url in sorted(shuffled, key=lambda url: self._left.get(url, 0.0)):
            try:
                self.at = url
                return await dial(self.options, url, self._ended, self._complained)
            except UnsupportedServer:
                raise
            except (BusError, ConfigError) as e:
                failure = e
        raise failure

    def _attach(self, client: WireClient) -> None:
        self._client = client
        self._gone.clear()
        self.max_payload = client.max_payload - protocol.RESERVE
        self._learn(client)
        client.routes.update({i.sid: i.route for i in self._subscriptions.values()})
        client.put(b"".join([i.command() for i in self._subscriptions.values()]))
        self.up.set()
        self.events.state("connected", str(client.server_info.get("server_name", "")))

    async def _need_jetstream(self) -> None:
        if self.client().server_info.get("jetstream"):
            return  # a leaf node without it may still reach a hub that has it: ask
        try:
            await self.api("INFO", None)
        except Unreachable as e:
            raise BusError("the server has no JetStream", fix=JETSTREAM_OFF) from e

    def _ended(self, reason: str) -> None:
        if self._client is not None:  # else a try to connect that failed
            self._client = None
            self._over(reason)

    def _over(self, reason: str) -> None:
        self.up.clear()
        self._why = Unreachable("the bus is closed" if self.closed else f"the connection is lost: {reason}")
        for pending in list(self.pending.values()):
            pending.fail(Unreachable(self._why.message))
        for tell in list(self.on_end):
            tell()
        self._gone.set()
        self.events.state(*(("closed", "closed by this process") if self.closed else ("disconnected", reason)))

    async def _keep(self) -> None:
        while not self.closed:
            await self._gone.wait()
            pause = 0.02
            while self._client is None and not self.closed:
                try:
                    self._attach(await self._connect())
                except (BusError, ConfigError) as e:
                    self._why = e
                    self.events.error(e.message)
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(pause * 2, _LONGEST_PAUSE)

    def _complained(self, text: str) -> None:
        self.events.error(text)
        refuse(text, self.pending.values(), self._subscriptions.values())

    async def close(self) -> None:
        """End the connection; what was put before is sent first, if the server still listens."""
        if self.closed:
            return
        with suppress(Unreachable, NotAllowed):  # the server is gone: there is nobody to send to
            await self.flush(1.0)
        self.closed = True
        await self.isolation.stop()
        await self._tasks.stop()
        if self._client is not None:
            await self._client.close()
        else:
            self._over("")

    def client(self) -> WireClient:
        """The connection. Raises Unreachable, or NotAllowed when the server does not let us in any more."""
        if self._client is None:
            raise type(self._why)(self._why.message)
        return self._client

    def others(self) -> bool:
        """Whether another server is known than the one of the connection."""
        self._learn(self.client())
        return len(self._servers) > 1

    def _learn(self, client: WireClient) -> None:
        self._servers += [u for s in client.discovered_servers if (u := s.geturl()) not in self._servers]

    async def move(self, why: str) -> None:
        """Go to another server, and come back to this one last."""
        self._left[self.at] = asyncio.get_running_loop().time()
        await self.client().leave(why)

    # -- what the bus is made of
    def put(self, data: bytes) -> None:
        """Send, now or not at all: raises Unreachable without a connection, and keeps nothing for later."""
        self.client().put(data)

    async def send(self, data: bytes, timeout: float = 5.0) -> None:
        """`put`, and wait while the socket takes no more. Raises Unreachable."""
        client = self.client()
        client.put(data)
        if not client.clogged:  # nearly always: a timeout for each message costs more than sending it
            return
        try:
            async with asyncio.timeout(timeout):
                await client.drained()
        except (OSError, TimeoutError) as e:
            raise translated(e, "the server takes nothing") from e

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait until the server has seen all that was put. Raises Unreachable."""
        client = self.client()
        try:
            async with asyncio.timeout(timeout):
                await client.echo()
        except (OSError, TimeoutError) as e:
            raise translated(e, "no answer from the server") from e

    def tasks(self, failed: Callable[[BusError], None]) -> Tasks:
        """An owner of background tasks of this bus. A task that ends with an error of ours, which is a bug, calls `failed`."""

        def over(name: str, error: BaseException) -> None:
            self.events.error(f"{name} ended: {error!r}")
            failed(BusError(f"{name} ended: {error!r}", code="DX900", fix=DspexError.fix))

        return Tasks("dspex-nats", over)

    def _broken(self, error: BusError) -> None:
        self._why = error

    def fresh(self) -> str:
        """A token that this connection never gave before."""
        self._count += 1
        return f"{self._count:x}"

    def inbox(self) -> str:
        """A subject of this connection that nobody else listens on. Others may publish there, who are not forbidden to."""
        return f"{self.options.inbox_prefix}.{self.id}.{self.fresh()}"

    def listen(
        self,
        subject: str,
        route: WireRoute,
        *,
        queue: str = "",
        refused: Callable[[BusError], None] = lambda e: None,
        asks: str = "",
    ) -> WireSubscription:
        """Subscribe, over all connections to come; without one, as soon as there is one."""
        protocol.checked_pattern(subject)
        interest = WireSubscription(self.fresh().encode(), subject, queue, route, refused, asks)
        self._subscriptions[interest.sid] = interest
        if self._client is not None:
            self._client.routes[interest.sid] = route
            self._client.put(interest.command())
        return interest

    def forget(self, interest: WireSubscription) -> None:
        """Unsubscribe; messages under way are dropped."""
        self._subscriptions.pop(interest.sid, None)
        if self._client is not None:
            self._client.routes.pop(interest.sid, None)
            self._client.put(interest.end())

    async def leave(self, interest: WireSubscription) -> None:
        """Unsubscribe; messages under way still come, until this returns."""
        self._subscriptions.pop(interest.sid, None)
        if self._client is not None:
            self._client.put(interest.end())
            with suppress(Unreachable):  # a connection that has ended has sent everything, or never will
                await self.flush()
            self.forget(interest)

    def pending_request(self, subjects: Collection[str], final: Callable[[bytes, bytes], bool] = any_answer) -> PendingRequest:
        """A request about to be sent to `subjects`, its answers to `.reply`; forgotten at the end of its `with`."""
        token = self.fresh()
        return PendingRequest(self.pending, token.encode(), subjects, self.answered_on(token), final)

    def answered_on(self, token: str) -> str:
        """The subject on which answers with this token (see `fresh`) come, by the one subscription that there is for them."""
        return f"{self._answers}.{token}"

    def _answered(self, subject: bytes, reply: bytes, data: bytes, head: bytes) -> None:
        token, _, place = subject.rpartition(b".")[2].partition(b"-")
        if token in self.pending:
            self.pending[token].take(data, head, place)
        elif token in self.inboxes:
            self.inboxes[token](subject, reply, data, head)

    async def ask(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        more: str = "",
        timeout: float = 5.0,
        final: Callable[[bytes, bytes], bool] = any_answer,
    ) -> list[RawReply]:
        """Send one message and wait for its answers. Raises as `PendingRequest.settled`, and Unreachable before sending."""
        client = self.client()
        with self.pending_request((subject,), final) as q:
            client.put(protocol.message(subject, data, headers, reply=q.reply, more=more, limit=self.max_payload))
            return await q.settled(timeout)

    async def api(self, what: str, payload: object, *, timeout: float = 5.0) -> dict[str, Any]:
        """Ask JetStream (`$JS.API.<what>`). Raises what `refused` makes of the server's error; Unreachable."""
        body = b"" if payload is None else json.dumps(payload).encode()
        try:
            data, head = (await self.ask(f"$JS.API.{what}", body, timeout=timeout))[0]
        except TimeoutError as e:
            self.isolation.suspect()
            raise Unreachable(f"{what}: no answer from JetStream in {timeout:g} s") from e
        if protocol.headers(head).get("Status") == "503":
            self.isolation.suspect()
            raise Unreachable(f"{what}: no JetStream leader answers")
        answer = answer_of(data)
        if "error" in answer:
            if answer["error"].get("err_code") in NO_LEADER:
                self.isolation.suspect()
            raise refused(answer["error"], what)
        return answer
