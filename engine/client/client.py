"""The client: publish events, call programs, watch subjects, follow runs. Works from any process that reaches the server."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Generator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

from dspex.bus import codecs, subjects
from dspex.bus.duration import Duration, human, seconds
from dspex.bus.errors import CallTimeout, ConfigError, NotStored, RunFailed, RunNotFound, TopologyError
from dspex.bus.message import Event, Message, new_id, to_event
from dspex.bus.port import Bus, NewMessage
from dspex.bus.records import CallSpec, Usage
from dspex.engine.client import call as interactive
from dspex.engine.client import follow as runs
from dspex.engine.client import letters, status, watch
from dspex.engine.client.call import Result
from dspex.engine.client.follow import Follower, Progress, RunInfo
from dspex.engine.client.letters import DeadLetter
from dspex.engine.graph import manifest
from dspex.engine.graph.manifest import Manifest
from dspex.engine.graph.nodes import Call

V = TypeVar("V", covariant=True)


class HasCall(Protocol[V]):
    """What can be called: a `Spec`."""

    def to_call(self) -> Call: ...


def connect(url: str | None = None, *, settings: Any = None) -> Client:
    """A client: `async with connect() as client` or `client = await connect()`.

    Args:
        url: of the server; by default the one of the settings, else the local one that runs in this project.
        settings: `Settings`, which then say where the server is; loaded as every dspex process does when left out.
    """
    from dspex.bus.settings.model import Settings  # pydantic: only who connects pays for it

    return Client(settings or Settings.load(server__url=url))


class Client:
    """A connection to an application. All methods may raise `BusError`s."""

    def __init__(self, settings: Any = None, *, bus: Bus | None = None, app: str | None = None) -> None:
        self._settings = settings
        self._bus = bus
        self.app: str = app or settings.app
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if self._bus is None:
            from dspex.bus.local.open import open_bus

            self._bus = await self._stack.enter_async_context(open_bus(self._settings, name="dspex/client"))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Close the connection. Calling it again does nothing."""
        self._bus = None
        await self._stack.aclose()

    @property
    def bus(self) -> Bus:
        """The bus below; for tools."""
        if self._bus is None:
            raise ConfigError("the client is not connected", fix="async with dspex.connect() as client: …")
        return self._bus

    async def manifests(self) -> dict[str, Manifest]:
        """What is applied, by topology."""
        return await manifest.read(await self.bus.bucket(subjects.bucket(self.app)))

    # -- events ---------------------------------------------------------------------------------------------------
    async def publish(
        self,
        subject: str,
        data: Any,
        *,
        id: str | None = None,
        key: str | None = None,
        session: str | None = None,
        time: datetime | None = None,
        headers: Mapping[str, str] | None = None,
        codec: codecs.Codec | None = None,
    ) -> Run:
        """Store an event; returns once it is stored. The same id twice is one event and one run.

        Args:
            subject: of a source.
            data: anything that the codec takes.
            id: of the event; a new UUIDv7 by default.
            key: keeps order, and spreads over partitions.
            session: id of the session it belongs to.
            time: event time; by default when it is stored.
            headers: more headers; dspex's own are refused.
            codec: "json" by default; "auto" chooses by the data.

        Raises:
            NotStored: no stream takes the subject. PayloadTooLarge. InvalidInput: the data cannot be encoded.
        """
        body, content_type = codecs.encode(data, codec or "json")
        all_headers = _headers(id or new_id(), key, session, time, headers, content_type)
        if not subjects.is_subject(subject):
            raise ConfigError(f"{subject!r} is not a subject", code="DX105", fix="words joined by dots, without wildcards")
        try:
            ack = await self.bus.publish(NewMessage(subject, body, all_headers))
        except NotStored as e:
            raise await self._suggested(subject, e) from None
        return Run(self, all_headers[subjects.MESSAGE_ID], subject, ack.stream, ack.sequence, ack.duplicate)

    async def _suggested(self, subject: str, e: NotStored) -> NotStored:
        known = {s: t for t, m in (await self.manifests()).items() for s in m.streams}
        close = difflib.get_close_matches(subject, known, n=1)
        fix = "apply a topology that reads it: dspex run"
        if close:
            fix = f"did you mean {close[0]} (source of {known[close[0]]})?  or {fix}"
        return NotStored(f"nothing stores {subject!r}, so the event would be lost", code=e.code, fix=fix, node="publish")

    def watch(self, what: str, *, start: Literal["new", "all"] | int | datetime = "new") -> AsyncIterator[Event[Any]]:
        """Events of a subject (wildcards allowed), or results of a recorded node `topology/node`. Takes nothing from anyone.

        `start`: "new", "all", a sequence, or a time.
        """
        return watch.events(self, what, start)

    # -- calls ----------------------------------------------------------------------------------------------------
    async def call(
        self, what: HasCall[V] | str, data: Any, /, *, timeout: Duration = "60s", session: str | None = None
    ) -> Result[V]:
        """Ask a worker and wait for the answer.

        Args:
            what: a Spec; a signature ("text -> lang"); or a deployed node ("support-triage/classify").
            data: the inputs by name.
            timeout: of the whole call.

        Raises:
            Saturated: all workers are busy, or there is none. CallTimeout. Any CallError of the program.
        """
        limit = seconds(timeout)
        spec, pool, call = await self.resolve(what)
        inputs = dict(call.inputs(data)) if call else dict(data)
        outcome, elapsed = await interactive.ask(self.bus, self.app, pool, spec, inputs, timeout=limit, session=session)
        outputs = outcome.outputs or {}
        answer: Any = call.accept(data, outputs) if call else dict(outputs)
        return Result(
            data=answer,
            id=outcome.call,
            route=outcome.route,
            usage=Usage(**outcome.usage),
            lm=outcome.lm,
            worker=outcome.worker,
            attempts=outcome.attempt,
            elapsed=timedelta(seconds=elapsed),
            dspy_version=outcome.dspy_version,
        )

    async def resolve(self, what: HasCall[Any] | str) -> tuple[CallSpec, str, Call | None]:
        """What `call` asks: the spec, its pool, and the call where its code is here. Raises ConfigError, TopologyError."""
        if not isinstance(what, str):
            call = what.to_call()
            return call.spec, call.pool, call
        if "->" in what:
            return CallSpec(kind="predict", target=what, signature=what, route="auto"), "lightweight", None
        if "/" not in what:
            raise ConfigError(
                f"{what!r} is neither a signature nor a node",
                code="DX106",
                fix='"text -> lang", "topology/node", or dspex.program("pkg.module:Class", "a -> b") for a program',
            )
        topology, _, node = what.partition("/")
        applied = (await self.manifests()).get(topology)
        if applied is None or node not in applied.calls:
            known = [f"{t}/{n}" for t, m in (await self.manifests()).items() for n in m.calls]
            close = difflib.get_close_matches(what, known, n=1) or known
            raise TopologyError(
                f"no recorded node {what!r} is applied", code="DX235", fix=f"known: {', '.join(close) or 'none'}"
            )
        found = applied.calls[node]
        raw: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found["spec"].items()}
        return CallSpec(**raw), found["pool"], None

    # -- runs -----------------------------------------------------------------------------------------------------
    def run(self, id: str) -> Run:
        """A run by its full id, or by a unique end of it (6 hex digits or more)."""
        return Run(self, id)

    async def follow(self, ids: Iterable[str], timeout: Duration | None = None) -> AsyncIterator[list[Progress]]:
        """The runs that have just finished, as they do, until all of `ids` have. Raises CallTimeout after `timeout`."""
        import asyncio

        follower = Follower(self.bus, self.app, await self.manifests(), ids)
        try:
            async with asyncio.timeout(seconds(timeout) if timeout is not None else None):
                async for finished in follower.follow():
                    yield finished
        except TimeoutError:
            left = [r.id for r in follower.runs.values() if not r.done]
            raise CallTimeout(
                f"{len(left)} of {len(follower.runs)} runs are not finished after {human(seconds(timeout or 0))}",
                run=left[0],
                fix="wait longer, or see what they wait for: dspex status",
            ) from None

    async def outputs(self, ids: Iterable[str]) -> dict[str, list[Event[Any]]]:
        """What each of these runs sent to sinks so far, in order."""
        stored = await runs.outputs(self.bus, self.app, await self.manifests(), ids)
        return {id: [read_event(m) for m in messages] for id, messages in stored.items()}

    # -- dead letters ---------------------------------------------------------------------------------------------
    def dead_letters(self, topology: str, *, node: str | None = None, reason: str | None = None) -> AsyncIterator[DeadLetter]:
        """The dead letters stored now, oldest first; `"*"` for all topologies. `reason`: an error class or code."""
        return letters.listing(self.bus, self.app, topology, node=node, reason=reason)

    async def redrive(self, letters_: Iterable[DeadLetter]) -> int:
        """Run their events again from where they failed: same event id, same run. How many."""
        return await letters.redrive(self.bus, self.app, letters_)

    # -- looking --------------------------------------------------------------------------------------------------
    async def status(self, pools: Sequence[str] = ()) -> dict[str, Any]:
        """Server, engines, stages, and pools, as plain data. `pools`: more of them to ask than the topologies use."""
        return await status.status(self.bus, self.app, await self.manifests(), pools)


class Run:
    """Everything that one source event caused."""

    def __init__(
        self,
        client: Client,
        id: str,
        subject: str = "",
        stream: str = "",
        sequence: int = 0,
        duplicate: bool = False,
    ) -> None:
        self._client = client
        self.id = id
        self.subject = subject
        self.stream = stream
        self.sequence = sequence
        self.duplicate = duplicate

    async def _full(self) -> str:
        if len(self.id) < 36:
            self.id = await runs.find(self._client.bus, self._client.app, await self._client.manifests(), self.id)
        return self.id

    async def info(self) -> RunInfo:
        """What is known of it now. Raises RunNotFound."""
        id, applied = await self._full(), await self._client.manifests()
        follower = Follower(self._client.bus, self._client.app, applied, [id])
        await follower.look()
        if not follower.runs[id].started:
            raise RunNotFound(f"no source holds the event {id}", run=id)
        return follower.runs[id].info(applied)

    async def wait(self, timeout: Duration | None = None) -> RunInfo:
        """Until nothing that it caused is outstanding. Raises RunFailed if it has dead letters, CallTimeout."""
        id, applied = await self._full(), await self._client.manifests()
        async for finished in self._client.follow([id], timeout):
            info = finished[0].info(applied)
            if info.dead_letters:
                raise RunFailed(f"run {id} is done, with {info.dead_letters} dead letter(s)", run=id)
            return info
        raise RunNotFound(f"run {id} is not known", run=id)

    async def outputs(self) -> list[Event[Any]]:
        """What it sent to sinks so far, in order."""
        id = await self._full()
        return (await self._client.outputs([id]))[id]

    def __repr__(self) -> str:
        return f"Run({self.id!r})"


def read_event(m: Message) -> Event[Any]:
    """A stored message as a user sees it."""
    return to_event(m, codecs.decode(m.data, m.headers.get(subjects.CONTENT_TYPE)))


def _headers(
    id: str,
    key: str | None,
    session: str | None,
    time: datetime | None,
    more: Mapping[str, str] | None,
    content_type: str,
) -> dict[str, str]:
    ours = [h for h in more or {} if h in subjects.OWN_HEADERS or h.lower().startswith("nats-")]
    if ours:
        raise ConfigError(f"header {ours[0]!r} is set by dspex", code="DX107", fix="use publish's own options, or another name")
    headers = dict(more or {}) | {subjects.MESSAGE_ID: id}
    if key is not None:
        headers[subjects.KEY] = key
    if session is not None:
        headers[subjects.SESSION] = session
    if time is not None:
        headers[subjects.TIME] = (time if time.tzinfo else time.replace(tzinfo=UTC)).isoformat()
    if content_type != codecs.JSON:
        headers[subjects.CONTENT_TYPE] = content_type
    return headers
