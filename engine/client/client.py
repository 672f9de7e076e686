"""The client: publish events, call programs, watch subjects, follow runs. Works from any process that reaches the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from typing_extensions import TypeVar

from dspex.bus.codecs import Codec, encode
from dspex.bus.errors import ConfigError, DspexError, WorkerLost
from dspex.bus.message import Event
from dspex.bus.port import Bus, NewMessage
from dspex.bus.serving import audit
from dspex.bus.serving.payloads import ABOVE
from dspex.bus.settings.duration import Duration, seconds
from dspex.engine.client import call as interactive
from dspex.engine.client import letters as dead
from dspex.engine.client import publish as publishing
from dspex.engine.client import watch
from dspex.engine.client.call import Result
from dspex.engine.client.calls import jobs
from dspex.engine.client.calls import submit as submitting
from dspex.engine.client.calls.answers import SubmittedCalls
from dspex.engine.client.calls.batch import in_order
from dspex.engine.client.calls.saying import NodeStatus, said_of
from dspex.engine.client.calls.session import Session
from dspex.engine.client.calls.stream import Answer
from dspex.engine.client.following import forgetting
from dspex.engine.client.following.naming import full_ids
from dspex.engine.client.following.progress import RunInfo, RunProgress
from dspex.engine.client.following.waits import RunWaits
from dspex.engine.client.letters import DeadLetter
from dspex.engine.client.resolve import HasCall, Nodes, Resolved
from dspex.engine.client.run import Run, finishing
from dspex.engine.client.runs.diff import Diff, NamedRun, Replay, compare, need_fields, need_records
from dspex.engine.client.runs.judged.evaluation import Evaluation
from dspex.engine.client.runs.judged.scores import Score, Scores
from dspex.engine.client.runs.kept import imported
from dspex.engine.client.runs.listing import listed as runs_of
from dspex.engine.client.runs.listing import moment_of
from dspex.engine.client.runs.outputs import outputs
from dspex.engine.client.status import approvals, programs, scaling, state, status
from dspex.engine.client.status.approvals import Approval
from dspex.engine.client.status.programs import ProgramInfo
from dspex.engine.client.status.rows import Status
from dspex.engine.client.status.sessions import SessionInfo, listed
from dspex.engine.client.status.stages import UnownedLogs
from dspex.engine.graph import manifest
from dspex.engine.graph.graph import HasGraph
from dspex.engine.graph.manifest import Manifest

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings  # pydantic: only who connects pays for it

V = TypeVar("V", default=dict[str, Any])


def connect(url: str | None = None, *, settings: Settings | None = None) -> Client:
    """A client: `async with connect() as client` or `client = await connect()`.

    Args:
        url: of the server; by default the one of the settings, else the local one that runs in this project.
        settings: `Settings`, which then say where the server is; loaded as every dspex process does when left out.
    """
    from dspex.bus.settings.model import Settings

    return Client(settings or Settings.load(server__url=url))


class Client:
    """A connection to an application. All methods may raise `BusError`s."""

    def __init__(self, settings: Settings | None = None, *, bus: Bus | None = None, app: str | None = None) -> None:
        self._settings = settings
        self._bus = bus
        if app is None:
            if settings is None:
                raise ConfigError("a client needs settings, or a bus and an app", fix="dspex.connect()")
            app = settings.app
        self.app: str = app
        self._nodes = Nodes(app)
        self._submitted = SubmittedCalls(app)
        self._unowned = UnownedLogs()
        if bus is not None and bus.sealing is not None and bus.sealing.app != app:  # nobody in `app` could open what it seals
            why = f"this connection seals for application {bus.sealing.app}, and the client is one of {app}"
            raise ConfigError(why, code="DX124", fix="give it a connection of its own")
        self._stack = AsyncExitStack()
        self._waits: RunWaits | None = None  # who never closes the client leaves nothing that reads

    async def __aenter__(self) -> Self:
        if self._bus is None and self._settings is not None:
            from dspex.bus.local.open import open_bus

            self._bus = await self._stack.enter_async_context(open_bus(self._settings, name="dspex/client"))
        self._waits = RunWaits(self.app)
        self._stack.push_async_callback(self._waits.close)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Close the connection. Calling it again does nothing."""
        self._bus = None
        self._submitted = SubmittedCalls(self.app)  # what heard of calls did so over that connection
        await self._stack.aclose()

    @property
    def bus(self) -> Bus:
        """The bus below; for tools."""
        if self._bus is None:
            raise ConfigError("the client is not connected", fix="async with dspex.connect() as client: …")
        return self._bus

    async def manifests(self) -> dict[str, Manifest]:
        """What is applied, by topology."""
        return await manifest.of_application(self.bus, self.app)

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
        at: datetime | None = None,
        after: Duration | None = None,
        headers: Mapping[str, str] | None = None,
        codec: Codec | None = None,
    ) -> Run:
        """Store an event; returns once it is stored. The same id twice within two minutes is one event and one run.

        Args:
            subject: of a source.
            data: anything that the codec takes.
            id: what tells the server that the event is stored already, for as long as it remembers ids (2 minutes); random by
                default. The event's own id comes from its place in the stream.
            key: keeps order, and spreads over partitions.
            session: id of the session it belongs to. An event is no turn of it, and neither are the calls that it causes.
            time: event time; by default when it is stored.
            at: when the engine takes it, which is its event time too. It is stored at once. The engine compares with its own
                clock, which is the server's. At most 366 days ahead: else it is a dead letter.
            after: the same, counted from when it is stored.
            headers: more headers; dspex's own are refused.
            codec: "json" by default; "auto" chooses by the data.

        Raises:
            NotStored: no stream takes the subject. PayloadTooLarge. InvalidInput: the data cannot be encoded.
        """
        body, content_type = encode(data, codec or "json")
        waits = publishing.waiting(time, at, after)
        own = publishing.headers_of(publishing.named(id), key, session, time, headers, content_type, waits)
        above = self._settings.engine.claim_check_above if self._settings is not None else ABOVE
        return await publishing.publish(self.bus, self.app, NewMessage(subject, body, own), above, self._waits)

    def watch(self, what: str, *, start: Literal["new", "all"] | int | datetime = "new") -> AsyncIterator[Event[Any]]:
        """Events of a subject (wildcards allowed), or results of a recorded node `topology/node`. It only reads them.

        `start`: "new", "all", a sequence, or a time.
        """
        return watch.events(self.bus, self.app, what, start)

    def statuses(self, node: str) -> AsyncIterator[NodeStatus]:
        """What the programs of a recorded node `topology/node` say while they work (`context().status`), as they say it. It is
        stored nowhere: what nobody hears is gone. Raises TopologyError where there is no such node.
        """
        return said_of(self.bus, self._nodes, node)

    # -- calls ----------------------------------------------------------------------------------------------------
    async def call(
        self, what: HasCall[V] | str, data: Any, /, *, timeout: Duration | None = None, session: str | None = None
    ) -> Result[V]:
        """Ask a worker once and wait for the answer.

        Args:
            what: a Spec; a signature ("text -> lang"); or a deployed node ("support-triage/classify"), of which the pool
                and what a worker needs are taken. Its retry, fallback, on_error, order, priority and time limits belong to
                its topology.
            data: the inputs by name.
            timeout: of the whole call; by default the smaller of `timeout` and `deadline` of a Spec, else 60 s.
            session: the call is the next turn of this session, as by `Client.session`; one that is there keeps its ttl.

        Raises:
            Saturated: all workers are busy, or there is none. CallTimeout. Any CallError of the program.
            ConfigError: DX108, a Spec with `retry`, `fallback`, `on_error`, `order` or `priority`: only a topology carries
                them out.
        """
        if session is not None:
            return await Session(self, self._nodes, session, None, "queue").call(what, data, timeout=timeout)
        limit = None if timeout is None else seconds(timeout)
        return await interactive.call(self.bus, self._nodes, what, data, timeout=limit)

    def stream(
        self, what: HasCall[V] | str, data: Any, /, *, timeout: Duration | None = None, session: str | None = None
    ) -> Answer[V]:
        """The same, with the text of the answer as the model writes it: `async with client.stream(…) as answer`.

        Leaving the block before the end cancels the call in the worker. `timeout`: of the whole call; by default the smaller of
        `timeout` and `deadline` of a Spec that has one of them, else 10 minutes. Reading raises what `call` raises.
        """
        if session is not None:
            return Session(self, self._nodes, session, None, "queue").stream(what, data, timeout=timeout)
        limit = None if timeout is None else seconds(timeout)
        bus, nodes = self.bus, self._nodes
        return Answer(lambda told: interactive.call(bus, nodes, what, data, timeout=limit, told=told))

    async def batch(
        self, what: HasCall[V] | str, items: Iterable[Any], /, *, concurrency: int = 16, timeout: Duration | None = None
    ) -> AsyncIterator[Result[V] | DspexError]:
        """`call` for each of many items: their results in the order of the items, each as soon as it is there.

        An item whose call fails gives its error, in its place, and the others go on. Leaving the loop and closing the iterator
        ends the calls that are open.

        Args:
            what: as of `call`.
            items: the inputs of each call. Taken as calls begin, so there may be any number of them.
            concurrency: how many calls are open at a time. Those that find no free slot wait for one.
            timeout: of each call, from when it begins.
        """
        async for result in in_order(lambda data: self.call(what, data, timeout=timeout), items, concurrency):
            yield result

    async def submit(self, what: HasCall[Any] | str, data: Any, /, *, id: str | None = None, session: str | None = None) -> Run:
        """Store a call, and return: an engine has it made, whatever becomes of this process. `Run.result` gives its result.

        It is tried again as a call of a topology is. The application must have `engine.submit = true`.

        Args:
            what: as of `call`; a deployed node is submitted as it is now. Of a Spec's options `retry`, `priority`, `timeout`
                and `deadline` are carried out.
            data: the inputs by name.
            id: names the call. The same id twice is one call and one run, for as long as its event is kept.
            session: the answer is a turn of it, as with `Session.call`. The submitted calls of a session are made one after
                the other.

        Raises:
            NotStored: the application takes no submitted calls. ConfigError: DX108, a Spec with `fallback`, `on_error` or
            `order`: only a topology carries them out. SessionEnded.
        """
        above = self._settings.engine.claim_check_above if self._settings is not None else ABOVE
        return await submitting.submit(
            self.bus, self._nodes, self._submitted, what, data, id=id, session=session, above=above, waits=self._waits
        )

    async def job_status(self, run: str) -> str | None:
        """How far the job of an optimizer is (`Spec.optimize`), "scoring before 12/96"; None where it does not run now.

        `run`: the id of its run as `submit` gave it, `pool/call`. Raises Saturated where no process of the pool is there;
        RunNotFound for another id.
        """
        return await jobs.said_of(self.bus, self.app, run)

    async def cancel_job(self, run: str) -> bool:
        """Cancel the job of an optimizer: its run ends in Cancelled. Whether it was running; one that waits ends where a
        process of the pool takes it up, whenever one is there.

        `run` as of `job_status`. Raises RunNotFound for another id.
        """
        running = await jobs.end(self.bus, self.app, run)
        await audit.leave(self.bus, self.app, "call", cancelled=run)
        return running

    def session(
        self, id: str, *, ttl: Duration = "30d", policy: Literal["queue", "reject", "interrupt", "latest"] = "queue"
    ) -> Session:
        """A session: calls in their order, what was said before, and data, from any process. Made when it is first used.

        Args:
            id: of 1 to 512 letters and digits.
            ttl: how long after its last use it ends by itself.
            policy: what a call does where another call has the session. "queue": it waits behind all others; "reject": it
                raises SessionBusy; "interrupt": it ends the one that runs; "latest": it ends those that wait, and waits for
                the one that runs. Those that are ended raise Cancelled.

        Raises ConfigError: DX101, no session can have this id; DX105.
        """
        return Session(self, self._nodes, id, ttl, policy)

    async def sessions(self) -> AsyncIterator[SessionInfo]:
        """All sessions, those included that have ended and are remembered as that, by their ids."""
        async for info in listed(self.bus, self.app):
            yield info

    async def resolve(self, what: HasCall[V] | str) -> Resolved[V]:
        """What `call` asks for. Raises ConfigError, TopologyError."""
        return (await self._nodes.resolve(self.bus, what))[0]

    # -- runs -----------------------------------------------------------------------------------------------------
    def run(self, id: str) -> Run:
        """A run by its full id, or by a unique end of it (6 hex digits or more)."""
        return Run(self.bus, self.app, id, waits=self._waits)

    async def runs(
        self,
        topology: str | None = None,
        *,
        status: Literal["running", "done", "failed", "cancelled"] | None = None,
        since: Duration | datetime | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> AsyncIterator[RunInfo]:
        """Runs, the latest first. Raises TopologyError (DX235) for a topology that is not applied; RunNotFound for a `before`
        that is no full id; ConfigError (DX105) for a status that is none.

        Args:
            topology: only its runs. status: only those that are so now.
            since: only those that began then or later: a time, or how long ago.
            limit: so many at most.
            before: only those that began before this run, by its full id: the last of a list, for more of them.
        """
        async for info in runs_of(
            self.bus,
            self.app,
            await self.manifests(),
            topology=topology,
            status=status,
            since=moment_of(since),
            limit=limit,
            before=before,
        ):
            yield info

    async def import_run(self, path: str | PathLike[str]) -> Run:
        """Keep a run that was exported (`Run.export`), here or elsewhere: it is then found as those in the logs are, and is
        removed after `engine.records`. The same file again is nothing new.

        Raises DecodeError where the file is none, or was changed; RunError (DX628) where another run here has its id.
        """
        file = await imported(self.bus, self.app, await self.manifests(), Path(path))
        await audit.leave(self.bus, self.app, "import", run=file.info.id, topology=file.info.topology)
        return self.run(file.info.id)

    async def diff(self, a: str | NamedRun, b: str | NamedRun, *, fields: Collection[str] | None = None) -> Diff:
        """What run `b` did otherwise than `a`, aligned by step id. `fields`: only these count.

        Raises RunNotFound; RecordingIncomplete where a record of one is wrong; ConfigError (DX105) for a field that none has.
        """
        one, other = [await self.run(run if isinstance(run, str) else run.id).file() for run in (a, b)]
        for file in (one, other):
            need_records(file.root)
        need_fields(fields or (), one.root, other.root)
        found = compare(one.root, other.root, (one.info, other.info), fields)
        is_fork = other.later is not None and other.info.parent == one.info.id and fields is None
        return found.with_later(other.later) if is_fork and other.later is not None else found

    async def score(self, run: str | NamedRun, name: str, value: float, *, node: str | None = None, note: str = "") -> Score:
        """Say how good a run is, or what an operator answered in it. All that was said is kept; the latest of a name counts.

        It is credited to who answered: the saved state of the program, or its digest, and the model. Needs the rights of an
        operator.

        Args:
            run: any run. name: of letters and digits: "helpful". value: a number; more is better, where programs are compared.
            node: of which operator, or step (`classify#0`); None: of the run, and so of all that answered in it.
            note: why.

        Raises RunNotFound, also where no such operator has answered. ConfigError (DX105, DX101) for what is no score.
        """
        one = await self.run(run if isinstance(run, str) else run.id).file()
        found = await Scores(self.bus, self.app).add(one.info, one.root, one.session, name, value, node, note)
        await audit.leave(self.bus, self.app, "score", run=found.run, name=name, value=found.value)
        return found

    async def scores(
        self, run: str | NamedRun | None = None, *, topology: str | None = None, since: Duration | datetime | None = None
    ) -> AsyncIterator[Score]:
        """What was said of runs, the oldest first: of a run, of those of a topology, or of all. `since`: said then or later."""
        scores = Scores(self.bus, self.app)
        if run is None:
            async for score in scores.listing(topology, moment_of(since)):
                yield score
            return
        one = self.run(run if isinstance(run, str) else run.id)
        for score in await scores.of((await one.info()).id):
            yield score

    async def evaluate(
        self,
        target: str | HasGraph,
        metric: str | Callable[[Any, Any], Any],
        *,
        since: Duration | datetime,
        baseline: str | PathLike[str] | None = None,
        expected: str | None = None,
        fields: Sequence[str] = (),
        sink: str | None = None,
        policy: str | None = None,
        limit: int = 1000,
        budget: int | None = None,
    ) -> Evaluation:
        """Judge a candidate by the recorded runs of its topology: each is done again with it, calls that ask what was asked
        then are read back, and only others are made. No sink is written. What could not be judged is `missing`, and fails it.

        Args:
            target: the candidate: a Topology, `module:attr`, or a YAML file.
            metric: one of dspex.metrics, `module:function`, or a function of (expected, actual), which may be async.
            since: the runs that began then or later: a time, or how long ago.
            baseline: a file with what `dspex eval --json` printed; None: what was recorded.
            expected: the field of the source event that says what is right; None: what was recorded does.
            fields: of outputs: only these are compared. sink: only what is sent there.
            policy: "no worse than 0.02", or "at least 0.8".
            limit: so many runs at most, the latest. budget: tokens after which no call is made any more.

        Raises ConfigError, TopologyError, Saturated where a pool has no worker, BusError.
        """
        from dspex.engine.judge import door

        how = {"expected": expected, "fields": fields, "sink": sink, "policy": policy, "limit": limit, "budget": budget}
        return await door.evaluate(self, self._settings, target, metric, moment_of(since), baseline, said=str(since), **how)

    async def replay(
        self,
        run: str | NamedRun | None = None,
        *,
        topology: str | HasGraph | None = None,
        since: Duration | datetime | None = None,
        until: datetime | None = None,
        mode: Literal["strict", "hybrid", "live"] = "strict",
        build: str | PathLike[str] | None = None,
        any_build: bool = False,
    ) -> Replay:
        """Do a run again, or all that a topology did, with the code of today: whether it ends as it did. No sink is written.

        Args:
            run: its id, or itself. None: all that `topology` did.
            topology: what is run: a Topology; a name is one of those that the settings name, as is what is left out.
            since, until: of a topology, only what was then: a time, or how long ago.
            mode: "strict": each call is answered by its record, and none is made; "hybrid": a call that has no recorded answer
                to the same request is made; "live": all calls are made.
            build: a folder with the code as it was, which is run instead, in a process of its own Python. any_build: also where
                it is not the recorded build.

        Raises:
            Divergence: strict, a call was not made then. RunNotFound. Saturated: a pool has no worker.
            ConfigError: DX135, the settings name no topology. TopologyError: DX235, there is none of this name.
        """
        from dspex.engine.again import door
        from dspex.engine.client.runs.then.built import FolderOf

        given = run if run is None or isinstance(run, str) else run.id
        folder = FolderOf(build, any_build, self._settings) if build is not None or any_build else None
        return await door.replay(self, self._settings, given, topology, moment_of(since), until, mode, folder)

    async def fork(
        self,
        run: str | NamedRun,
        at: str,
        *,
        lm: str | None = None,
        program: str | None = None,
        spec: HasCall[Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        topology: HasGraph | None = None,
        deliver: bool = False,
        mode: Literal["strict", "hybrid", "live"] = "hybrid",
        build: str | PathLike[str] | None = None,
        any_build: bool = False,
    ) -> Run:
        """Do a run again with exactly one change, and see what follows from it. It is a run of its own, with a parent, and is
        kept as an imported one is. Calls that ask what was asked then are read back, and others are made, with the
        state of then.

        Args:
            run: that is over. at: an operator, for all of its steps, or one step: `classify#0`.
            lm: the profile that its calls ask. program: the saved state that they have. spec: what is called instead.
            inputs: of its calls, or fields of the data that come to an operator or a source. outputs: what it gives instead, of
                an operator with state what it gives in this run.
            topology: other code, for the whole run.
            deliver: publish its outputs to the sinks. Otherwise nothing is written but the fork itself.
            mode: "strict": no call is made; "live": all calls of the run are.
            build, any_build: under the code of a folder, as of `replay`.

        Raises:
            ConfigError: DX105, not one change, or none that the operator can have, or a value that does not fit its field.
            RunNotFound: the run has no such step, or nothing there that could be changed.
            Saturated: a pool has no worker. Divergence: a call would have to be made. As `replay`.
        """
        from dspex.engine.again import door
        from dspex.engine.client.runs.then.built import FolderOf

        change = {"lm": lm, "program": program, "spec": spec, "inputs": inputs, "outputs": outputs}
        given = run if isinstance(run, str) else run.id
        folder = FolderOf(build, any_build, self._settings) if build is not None or any_build else None
        made, later = await door.fork(self, self._settings, given, at, change, topology, folder, deliver=deliver, mode=mode)
        run = self.run(made)
        run.later = later
        return run

    async def follow(self, ids: Iterable[str], timeout: Duration | None = None) -> AsyncIterator[list[RunProgress]]:
        """The runs that have just finished, by their full ids, as they do, until all of `ids` have. Raises CallTimeout."""
        async for finished in finishing(self.bus, self.app, await full_ids(self.bus, self.app, ids), timeout):
            yield finished

    async def outputs(self, ids: Iterable[str]) -> dict[str, list[Event[Any]]]:
        """What each of these runs sent to sinks so far, in order, by their full ids."""
        return await outputs(self.bus, self.app, await self.manifests(), await full_ids(self.bus, self.app, ids))

    # -- dead letters ---------------------------------------------------------------------------------------------
    def dead_letters(self, topology: str, *, node: str | None = None, reason: str | None = None) -> AsyncIterator[DeadLetter]:
        """The dead letters stored now, oldest first; `"*"` for all topologies.

        Args:
            node: "draft" or "topology/draft", by its name of today or an older one. reason: an error class or code.
        """
        return dead.listing(self.bus, self.app, topology, node=node, reason=reason)

    async def redrive(self, letters: Iterable[DeadLetter], *, time: datetime | Literal["now"] | None = None) -> int:
        """Run their events again from where they failed: same event id, same run. How many.

        `time`: their event time from now on. Raises RunError (DX625) for an event that was late and is given none.
        """
        given = list(letters)
        try:
            return await dead.redrive(self.bus, self.app, given, time=time)
        finally:  # also where one could not be redriven: others were
            await dead.audited(self.bus, self.app, "redrive", [letter.sequence for letter in given])

    # -- people ---------------------------------------------------------------------------------------------------
    def approvals(self, topology: str | None = None) -> AsyncIterator[Approval]:
        """What waits for a person's decision now (`approve`), the oldest first; of one topology, or of all."""
        return approvals.listing(self.bus, self.app, topology)

    async def decide(
        self,
        approval: str | Approval,
        decision: Literal["accept", "reject"],
        *,
        edit: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> None:
        """Decide about something that waits; returns once that is stored. It is final; deciding the same again does nothing.

        Args:
            approval: its id, or a unique end of it (6 hex digits or more); or what `approvals` gave: then it is refused if
                something else waits now than was shown.
            decision: "accept": the event goes on; "reject": it becomes a dead letter, with the note.
            edit: fields in the place of those of the data, checked as the operators behind expect their data.
            note: why, for the audit and the dead letter.

        Raises:
            RunError: DX626, it is decided otherwise, and by whom; or it does not wait any more.
        """
        await approvals.decide(self.bus, self.app, approval, decision, edit=edit, note=note)

    # -- forgetting -----------------------------------------------------------------------------------------------
    async def forget(self, *, session: str | None = None, run: str | None = None) -> int:
        """Delete the key that seals what belongs to a session: nobody can read its events, calls and outputs any more, though
        it is still seen that they were. What nothing goes by is removed: its data and turns, its events in sinks, dead letters,
        records of interactive calls, cached answers, imported runs and forks, large payloads. How many keys were deleted: one,
        or one for each that the setting names.

        Engines, workers and clients that have used the key lately go on with it for a minute. What was not sealed stays: see
        docs/security.md. `run`: an imported run is removed; one of the logs is not sealed apart, so that is refused.

        Raises ConfigError: DX125 where the application seals nothing, with where all lies and until when, and for a run of the
        logs; DX124 where there is no key here, or another one; DX105 for an empty id, and for not one of both.
        """
        if (session is None) == (run is None):
            raise ConfigError("either a session or a run is forgotten", code="DX105", fix="give one of session= and run=")
        if session is None:
            id = await self.run(str(run)).remove()
            await audit.leave(self.bus, self.app, "forget", run=id)
            return 1
        return await forgetting.forget(self.bus, self.app, session, await manifest.of_application(self.bus, self.app))

    # -- state ----------------------------------------------------------------------------------------------------
    async def state(self, node: str, key: str, *, at: datetime | int | None = None) -> Any:
        """What an operator with state keeps of a key; None where it keeps nothing. It only reads.

        Nothing of your code is imported: a value is as it was kept, and of a model or a dataclass it is a dict of the fields.

        Args:
            node: "support-triage/intents_per_minute"; the operator's name is enough where one topology has it.
            key: as `key_by` gave it; "" for an operator of a stream without keys. That has something for each partition: a list
                of them where there are several.
            at: as it was at this time; or as of this sequence of the application's stream, as log entries have it.

        Raises:
            TopologyError: DX235, no such operator is applied. RecordingIncomplete: what was then is not kept any more.
        """
        found = [one.value for one in await state.of_key(self.bus, self.app, node, key, at)]
        return found if len(found) > 1 else next(iter(found), None)

    # -- programs -------------------------------------------------------------------------------------------------
    async def put_program(self, name: str, state: Mapping[str, Any]) -> str:
        """Save what an optimizer made of a program (`program.dump_state()`) as its next version: "draft@4", for `state=`.

        Raises InvalidInput (DX518) for what is no state of predictors as JSON. The language models in it are left out.
        """
        known = self._settings
        pools, replicas = (known.pools, known.server.replicas) if known is not None else ((), 1)
        return (await programs.ProgramStore(self.bus, self.app, pools, replicas).put(name, state))[0].name

    async def promote_program(self, name: str, version: int, alias: str) -> None:
        """Have an alias of a saved program point to a version: the next calls with `state="name@alias"` use it.

        Raises RunError: DX627, there is no such version.
        """
        pools = self._settings.pools if self._settings is not None else ()
        await programs.ProgramStore(self.bus, self.app, pools).promote(name, version, alias)

    async def rollback_program(self, name: str, alias: str) -> int:
        """Have an alias point to what it pointed to before; the version.

        Raises RunError: DX627, it has pointed to nothing else. Fenced: somebody else changes it at the same time.
        """
        pools = self._settings.pools if self._settings is not None else ()
        return await programs.ProgramStore(self.bus, self.app, pools).rollback(name, alias)

    async def describe(self, what: HasCall[Any] | str, *, timeout: Duration = "60s") -> ProgramInfo:
        """What a program is made of, as a worker has it: predictors, signatures, demonstrations, saved state, versions.

        Nothing is called and no model is asked; a worker imports and builds the program. `what`: as for `call`. Needs the right
        to ask its pool what is deployed nowhere (`call.<pool>.adhoc.describe`). Raises as `call`.
        """
        return await programs.describe(self.bus, self.app, await self.resolve(what), seconds(timeout))

    # -- pools ----------------------------------------------------------------------------------------------------
    async def scale(self, pool: str, size: int | None) -> None:
        """Have `size` worker processes in a pool from now on, on all machines together; None: as the settings say.

        It outlives the pool's processes, and goes before `pools.*.scale`. Returns when the workers are ready. With 0, durable
        calls wait. Needs the rights of an operator.

        Raises:
            Saturated: no process of the pool is running. WorkerLost: not all have as many as they should.
            Fenced: somebody else sets it at the same time.
        """
        replicas = self._settings.server.replicas if self._settings is not None else 1
        done = await scaling.scale(self.bus, self.app, pool, size, replicas=replicas)
        if why := [f"{one.id}: {one.why}" for one in done if one.why]:
            raise WorkerLost(f"pool {pool} is not as large as it should be: {'; '.join(why)}", node=pool)

    # -- looking --------------------------------------------------------------------------------------------------
    async def status(self, pools: Sequence[str] = ()) -> Status:
        """Server, engines, stages, and pools, as plain data. `pools`: more pools than the topologies use."""
        return await status.status(self.bus, self.app, await self.manifests(), pools, self._unowned)
