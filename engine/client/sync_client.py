"""Generated from the client's classes by scripts/make_sync.py: the same names without `await`. Do not edit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from os import PathLike
from types import TracebackType
from typing import Any, Generic, Literal, Self

from typing_extensions import TypeVar

from dspex.bus.codecs import Codec
from dspex.bus.errors import DspexError
from dspex.bus.message import Event
from dspex.bus.port import Bus
from dspex.bus.serving.sessions.state import Policy
from dspex.bus.settings.duration import Duration
from dspex.engine.client import background
from dspex.engine.client import client as _client
from dspex.engine.client import run as _run
from dspex.engine.client.call import Result
from dspex.engine.client.calls import session as _session
from dspex.engine.client.calls import stream as _stream
from dspex.engine.client.calls.cancelling import CancelledRun
from dspex.engine.client.calls.events import Accepted, Chunk, Progress
from dspex.engine.client.calls.saying import NodeStatus
from dspex.engine.client.following.progress import RunInfo, RunProgress
from dspex.engine.client.letters import DeadLetter
from dspex.engine.client.resolve import HasCall, Resolved
from dspex.engine.client.runs.diff import Diff, NamedRun, Replay
from dspex.engine.client.runs.export import RunFile
from dspex.engine.client.runs.history import History
from dspex.engine.client.runs.judged.evaluation import Evaluation
from dspex.engine.client.runs.judged.scores import Score
from dspex.engine.client.runs.steps import Step
from dspex.engine.client.runs.tree import Happening
from dspex.engine.client.status.approvals import Approval
from dspex.engine.client.status.programs import ProgramInfo
from dspex.engine.client.status.rows import Status
from dspex.engine.client.status.sessions import SessionInfo, Turn
from dspex.engine.graph.graph import HasGraph
from dspex.engine.graph.manifest import Manifest

V = TypeVar("V", default=dict[str, Any])


class Run:
    """Everything that one source event caused.

    Attributes:
        id: of the run. One that this client published is named by the place of its event, `<stream>@<sequence>`, until it
            is looked up, so that publishing needs no second question; one that was named by its end has only that until then.
            That of a submitted call is `<pool>/<call>` until then.
        subject, stream, sequence: where its event is stored, if this client published it.
        duplicate: the same event was stored before.
        later: of a fork that this client has made, what it leads to in other runs, as `dspex fork --json` has it; else None.
    """

    def __init__(self, of: _run.Run) -> None:
        self._of = of

    @property
    def id(self) -> str:
        return self._of.id

    @property
    def subject(self) -> str:
        return self._of.subject

    @property
    def stream(self) -> str:
        return self._of.stream

    @property
    def sequence(self) -> int:
        return self._of.sequence

    @property
    def duplicate(self) -> bool:
        return self._of.duplicate

    @property
    def later(self) -> Mapping[str, Any] | None:
        return self._of.later

    def info(self) -> RunInfo:
        """What is known of it now. Raises RunNotFound."""
        return background.run(self._of.info())

    def wait(self, timeout: Duration | None = None) -> RunInfo:
        """Until nothing that it caused is outstanding. Raises RunFailed if it has dead letters, CallTimeout."""
        return background.run(self._of.wait(timeout))

    def result(self, timeout: Duration | None = None) -> Result[Any]:
        """The result of a submitted call (`Client.submit`), when it is there; in any process of the user who submitted it, by
        the id that its run had then (`pool/call`). By the full id of the run it is read from the application's stream, which
        takes the right to read that.

        Raises the call's error, CallTimeout after `timeout`, RunFailed where the call's own time was over, RunNotFound where
        the run is no submitted call, or its record is not kept any more; without a timeout also where none of its name is
        stored, and this user may look for that.
        """
        return background.run(self._of.result(timeout))

    def steps(self, *, follow: bool = False) -> Iterator[Step]:
        """The attempts at calls so far, in the order in which they were asked for. Raises RunNotFound.

        `follow`: each as it ends, until nothing of the run is open.
        """
        return background.each(self._of.steps(follow=follow))

    def tree(self) -> Happening:
        """Its source event, with all that it caused below it. Raises RunNotFound."""
        return background.run(self._of.tree())

    def export(self, path: str | PathLike[str]) -> None:
        """Write it to a file, for `Driver.replay`. Raises RunNotFound; RecordingIncomplete where a call has no record."""
        background.run(self._of.export(path))

    def file(self, *, state: bool = False) -> RunFile:
        """What its file would say, also where a call has no record. `state`: with what operators kept when it began: to do it
        again. Raises RunNotFound.
        """
        return background.run(self._of.file(state=state))

    def kept(self) -> RunFile | None:
        """What is kept of it where it is in no log, such as one that was imported. None for any other; for tools."""
        return background.run(self._of.kept())

    def remove(self) -> str:
        """Remove it where it is in no log; its full id. Raises ConfigError (DX125) for another one, RunNotFound. For tools."""
        return background.run(self._of.remove())

    def history(self) -> tuple[History, Mapping[str, Manifest]]:
        """The commits that took something of it, and what is applied; for tools. Raises RunNotFound."""
        return background.run(self._of.history())

    def cancel(self) -> None:
        """End its open calls in their workers, with the requests that they make, and those that follow from what is under way,
        and withdraw its approvals: each becomes a dead letter, which can be redriven. What was sent stays. A run that is over
        is left as it is.

        It returns when nothing of the run is open any more, or after ten seconds: a call that waits for a slot ends when it
        would begin. Events that wait for their time go on then.

        Raises Saturated where no process of a pool is there that could end its calls; RunNotFound; BusError.
        """
        background.run(self._of.cancel())

    def cancelled(self) -> CancelledRun:
        """`cancel`, and what came of it; for tools."""
        return background.run(self._of.cancelled())

    def outputs(self) -> list[Event[Any]]:
        """What it sent to sinks so far, in order."""
        return background.run(self._of.outputs())

    def __repr__(self) -> str:
        return repr(self._of)


class Answer(Generic[V]):
    """An answer while it is made: `with client.stream(…) as answer`. Leaving the block before the end cancels the call in
    the worker.

    Iterating gives its pieces of text, `events` gives everything, and `result` the whole. Each event is given once, whoever
    takes it. The pieces of a field, put together, are its text: what was lost on the way, and what was never told piece by
    piece, is taken from the result and comes last. Memory holds what is not read yet, and no worker waits for who reads.
    """

    def __init__(self, of: _stream.Answer[V]) -> None:
        self._of = of

    def events(self) -> Iterator[Accepted | Progress | Chunk]:
        """Everything that comes before the result; `Accepted` is the first. Raises the call's error at the end."""
        return background.each(self._of.events())

    def result(self) -> Result[V]:
        """The whole answer, when it is there; no piece need be read. Raises the call's error; Cancelled where the block was
        left before the end.
        """
        return background.run(self._of.result())

    def __enter__(self) -> Self:
        background.run(self._of.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        background.run(self._of.__aexit__(kind, e, tb))

    def __iter__(self) -> Iterator[Chunk]:
        return background.each(self._of.__aiter__())

    def __repr__(self) -> str:
        return repr(self._of)


class Session:
    """Ordered and durable: calls are answered one at a time, whatever process asks, and each sees the turns before it.

    A handle, which costs nothing until it is used. To leave `async with` does not end the session.

    Attributes:
        id: of the session. policy: what a call does where another one has the session; see `Client.session`.
    """

    def __init__(self, of: _session.Session) -> None:
        self._of = of

    @property
    def id(self) -> str:
        return self._of.id

    @property
    def policy(self) -> Policy:
        return self._of.policy

    def call(
        self, what: HasCall[V] | str, data: Any, /, *, timeout: Duration | None = None, id: str | None = None
    ) -> Result[V]:
        """Ask a worker, once it is this call's turn; with an answer it is the session's next turn.

        The turn is stored before the answer is given, by the worker: it is there also where this process dies meanwhile. An
        input `history` that is not given is filled with the turns that are kept (a `dspy.History`).

        Args:
            what, data: as of `Client.call`. timeout: of the whole call, the wait for its turn included.
            id: names the turn. Where there is one of that name, its answer is given and nobody is asked: so who does not know
                what became of a call asks again with the same id.

        Raises:
            SessionBusy: policy "reject", and another call has the session. SessionEnded. SessionConflict: another call has
            taken the place of this one, which was silent for too long. Cancelled: a later call came in its place. And what
            `Client.call` raises.
        """
        return background.run(self._of.call(what, data, timeout=timeout, id=id))

    def stream(
        self, what: HasCall[V] | str, data: Any, /, *, timeout: Duration | None = None, id: str | None = None
    ) -> Answer[V]:
        """The same, with the text of the answer as the model writes it; see `Client.stream`."""
        return Answer(self._of.stream(what, data, timeout=timeout, id=id))

    def publish(self, subject: str, data: Any) -> Run:
        """`Client.publish` of an event that belongs to the session."""
        return Run(background.run(self._of.publish(subject, data)))

    def history(self, *, limit: int = 50) -> Iterator[Turn]:
        """The last turns that are kept, the oldest first: of a session its last 200, and at most 256 KiB of them."""
        return background.each(self._of.history(limit=limit))

    def load(self) -> tuple[dict[str, Any], int]:
        """The data that was saved, and its revision; `{}` and 0 where there is none. Raises SessionEnded."""
        return background.run(self._of.load())

    def save(self, data: Mapping[str, Any], revision: int) -> int:
        """Store data, if `revision` is what `load` gave for the latest; its new revision.

        Raises SessionConflict where somebody saved meanwhile, SessionEnded, OutputTooLarge: at most 256 KiB. After another
        error, such as of a connection that is cut, it may be stored or not: the same once more, on this object, stores it once.
        """
        return background.run(self._of.save(data, revision))

    def end(self) -> bool:
        """End it, and forget its data and its turns; whether it was there and had not ended.

        Its id can be used for another session after an hour, or its ttl where that is shorter.
        """
        return background.run(self._of.end())

    def info(self) -> SessionInfo | None:
        """What is known of it; None where there is no such session."""
        return background.run(self._of.info())

    def __enter__(self) -> Self:
        background.run(self._of.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        background.run(self._of.__aexit__(kind, e, tb))

    def __repr__(self) -> str:
        return repr(self._of)


class Client:
    """A connection to an application. All methods may raise `BusError`s."""

    def __init__(self, of: _client.Client) -> None:
        self._of = of

    @property
    def app(self) -> str:
        return self._of.app

    def close(self) -> None:
        """Close the connection. Calling it again does nothing."""
        background.run(self._of.close())

    @property
    def bus(self) -> Bus:
        """The bus below; for tools."""
        return self._of.bus

    def manifests(self) -> dict[str, Manifest]:
        """What is applied, by topology."""
        return background.run(self._of.manifests())

    def publish(
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
        return Run(
            background.run(
                self._of.publish(
                    subject, data, id=id, key=key, session=session, time=time, at=at, after=after, headers=headers, codec=codec
                )
            )
        )

    def watch(self, what: str, *, start: Literal["new", "all"] | int | datetime = "new") -> Iterator[Event[Any]]:
        """Events of a subject (wildcards allowed), or results of a recorded node `topology/node`. It only reads them.

        `start`: "new", "all", a sequence, or a time.
        """
        return background.each(self._of.watch(what, start=start))

    def statuses(self, node: str) -> Iterator[NodeStatus]:
        """What the programs of a recorded node `topology/node` say while they work (`context().status`), as they say it. It is
        stored nowhere: what nobody hears is gone. Raises TopologyError where there is no such node.
        """
        return background.each(self._of.statuses(node))

    def call(
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
        return background.run(self._of.call(what, data, timeout=timeout, session=session))

    def stream(
        self, what: HasCall[V] | str, data: Any, /, *, timeout: Duration | None = None, session: str | None = None
    ) -> Answer[V]:
        """The same, with the text of the answer as the model writes it: `with client.stream(…) as answer`.

        Leaving the block before the end cancels the call in the worker. `timeout`: of the whole call; by default the smaller of
        `timeout` and `deadline` of a Spec that has one of them, else 10 minutes. Reading raises what `call` raises.
        """
        return Answer(self._of.stream(what, data, timeout=timeout, session=session))

    def batch(
        self, what: HasCall[V] | str, items: Iterable[Any], /, *, concurrency: int = 16, timeout: Duration | None = None
    ) -> Iterator[Result[V] | DspexError]:
        """`call` for each of many items: their results in the order of the items, each as soon as it is there.

        An item whose call fails gives its error, in its place, and the others go on. Leaving the loop and closing the iterator
        ends the calls that are open.

        Args:
            what: as of `call`.
            items: the inputs of each call. Taken as calls begin, so there may be any number of them.
            concurrency: how many calls are open at a time. Those that find no free slot wait for one.
            timeout: of each call, from when it begins.
        """
        return background.each(self._of.batch(what, items, concurrency=concurrency, timeout=timeout))

    def submit(self, what: HasCall[Any] | str, data: Any, /, *, id: str | None = None, session: str | None = None) -> Run:
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
        return Run(background.run(self._of.submit(what, data, id=id, session=session)))

    def job_status(self, run: str) -> str | None:
        """How far the job of an optimizer is (`Spec.optimize`), "scoring before 12/96"; None where it does not run now.

        `run`: the id of its run as `submit` gave it, `pool/call`. Raises Saturated where no process of the pool is there;
        RunNotFound for another id.
        """
        return background.run(self._of.job_status(run))

    def cancel_job(self, run: str) -> bool:
        """Cancel the job of an optimizer: its run ends in Cancelled. Whether it was running; one that waits ends where a
        process of the pool takes it up, whenever one is there.

        `run` as of `job_status`. Raises RunNotFound for another id.
        """
        return background.run(self._of.cancel_job(run))

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
        return Session(self._of.session(id, ttl=ttl, policy=policy))

    def sessions(self) -> Iterator[SessionInfo]:
        """All sessions, those included that have ended and are remembered as that, by their ids."""
        return background.each(self._of.sessions())

    def resolve(self, what: HasCall[V] | str) -> Resolved[V]:
        """What `call` asks for. Raises ConfigError, TopologyError."""
        return background.run(self._of.resolve(what))

    def run(self, id: str) -> Run:
        """A run by its full id, or by a unique end of it (6 hex digits or more)."""
        return Run(self._of.run(id))

    def runs(
        self,
        topology: str | None = None,
        *,
        status: Literal["running", "done", "failed", "cancelled"] | None = None,
        since: Duration | datetime | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> Iterator[RunInfo]:
        """Runs, the latest first. Raises TopologyError (DX235) for a topology that is not applied; RunNotFound for a `before`
        that is no full id; ConfigError (DX105) for a status that is none.

        Args:
            topology: only its runs. status: only those that are so now.
            since: only those that began then or later: a time, or how long ago.
            limit: so many at most.
            before: only those that began before this run, by its full id: the last of a list, for more of them.
        """
        return background.each(self._of.runs(topology, status=status, since=since, limit=limit, before=before))

    def import_run(self, path: str | PathLike[str]) -> Run:
        """Keep a run that was exported (`Run.export`), here or elsewhere: it is then found as those in the logs are, and is
        removed after `engine.records`. The same file again is nothing new.

        Raises DecodeError where the file is none, or was changed; RunError (DX628) where another run here has its id.
        """
        return Run(background.run(self._of.import_run(path)))

    def diff(self, a: str | NamedRun, b: str | NamedRun, *, fields: Collection[str] | None = None) -> Diff:
        """What run `b` did otherwise than `a`, aligned by step id. `fields`: only these count.

        Raises RunNotFound; RecordingIncomplete where a record of one is wrong; ConfigError (DX105) for a field that none has.
        """
        return background.run(self._of.diff(a, b, fields=fields))

    def score(self, run: str | NamedRun, name: str, value: float, *, node: str | None = None, note: str = "") -> Score:
        """Say how good a run is, or what an operator answered in it. All that was said is kept; the latest of a name counts.

        It is credited to who answered: the saved state of the program, or its digest, and the model. Needs the rights of an
        operator.

        Args:
            run: any run. name: of letters and digits: "helpful". value: a number; more is better, where programs are compared.
            node: of which operator, or step (`classify#0`); None: of the run, and so of all that answered in it.
            note: why.

        Raises RunNotFound, also where no such operator has answered. ConfigError (DX105, DX101) for what is no score.
        """
        return background.run(self._of.score(run, name, value, node=node, note=note))

    def scores(
        self, run: str | NamedRun | None = None, *, topology: str | None = None, since: Duration | datetime | None = None
    ) -> Iterator[Score]:
        """What was said of runs, the oldest first: of a run, of those of a topology, or of all. `since`: said then or later."""
        return background.each(self._of.scores(run, topology=topology, since=since))

    def evaluate(
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
        return background.run(
            self._of.evaluate(
                target,
                metric,
                since=since,
                baseline=baseline,
                expected=expected,
                fields=fields,
                sink=sink,
                policy=policy,
                limit=limit,
                budget=budget,
            )
        )

    def replay(
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
        return background.run(
            self._of.replay(run, topology=topology, since=since, until=until, mode=mode, build=build, any_build=any_build)
        )

    def fork(
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
        return Run(
            background.run(
                self._of.fork(
                    run,
                    at,
                    lm=lm,
                    program=program,
                    spec=spec,
                    inputs=inputs,
                    outputs=outputs,
                    topology=topology,
                    deliver=deliver,
                    mode=mode,
                    build=build,
                    any_build=any_build,
                )
            )
        )

    def follow(self, ids: Iterable[str], timeout: Duration | None = None) -> Iterator[list[RunProgress]]:
        """The runs that have just finished, by their full ids, as they do, until all of `ids` have. Raises CallTimeout."""
        return background.each(self._of.follow(ids, timeout))

    def outputs(self, ids: Iterable[str]) -> dict[str, list[Event[Any]]]:
        """What each of these runs sent to sinks so far, in order, by their full ids."""
        return background.run(self._of.outputs(ids))

    def dead_letters(self, topology: str, *, node: str | None = None, reason: str | None = None) -> Iterator[DeadLetter]:
        """The dead letters stored now, oldest first; `"*"` for all topologies.

        Args:
            node: "draft" or "topology/draft", by its name of today or an older one. reason: an error class or code.
        """
        return background.each(self._of.dead_letters(topology, node=node, reason=reason))

    def redrive(self, letters: Iterable[DeadLetter], *, time: datetime | Literal["now"] | None = None) -> int:
        """Run their events again from where they failed: same event id, same run. How many.

        `time`: their event time from now on. Raises RunError (DX625) for an event that was late and is given none.
        """
        return background.run(self._of.redrive(letters, time=time))

    def approvals(self, topology: str | None = None) -> Iterator[Approval]:
        """What waits for a person's decision now (`approve`), the oldest first; of one topology, or of all."""
        return background.each(self._of.approvals(topology))

    def decide(
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
        background.run(self._of.decide(approval, decision, edit=edit, note=note))

    def forget(self, *, session: str | None = None, run: str | None = None) -> int:
        """Delete the key that seals what belongs to a session: nobody can read its events, calls and outputs any more, though
        it is still seen that they were. What nothing goes by is removed: its data and turns, its events in sinks, dead letters,
        records of interactive calls, cached answers, imported runs and forks, large payloads. How many keys were deleted: one,
        or one for each that the setting names.

        Engines, workers and clients that have used the key lately go on with it for a minute. What was not sealed stays: see
        docs/security.md. `run`: an imported run is removed; one of the logs is not sealed apart, so that is refused.

        Raises ConfigError: DX125 where the application seals nothing, with where all lies and until when, and for a run of the
        logs; DX124 where there is no key here, or another one; DX105 for an empty id, and for not one of both.
        """
        return background.run(self._of.forget(session=session, run=run))

    def state(self, node: str, key: str, *, at: datetime | int | None = None) -> Any:
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
        return background.run(self._of.state(node, key, at=at))

    def put_program(self, name: str, state: Mapping[str, Any]) -> str:
        """Save what an optimizer made of a program (`program.dump_state()`) as its next version: "draft@4", for `state=`.

        Raises InvalidInput (DX518) for what is no state of predictors as JSON. The language models in it are left out.
        """
        return background.run(self._of.put_program(name, state))

    def promote_program(self, name: str, version: int, alias: str) -> None:
        """Have an alias of a saved program point to a version: the next calls with `state="name@alias"` use it.

        Raises RunError: DX627, there is no such version.
        """
        background.run(self._of.promote_program(name, version, alias))

    def rollback_program(self, name: str, alias: str) -> int:
        """Have an alias point to what it pointed to before; the version.

        Raises RunError: DX627, it has pointed to nothing else. Fenced: somebody else changes it at the same time.
        """
        return background.run(self._of.rollback_program(name, alias))

    def describe(self, what: HasCall[Any] | str, *, timeout: Duration = "60s") -> ProgramInfo:
        """What a program is made of, as a worker has it: predictors, signatures, demonstrations, saved state, versions.

        Nothing is called and no model is asked; a worker imports and builds the program. `what`: as for `call`. Needs the right
        to ask its pool what is deployed nowhere (`call.<pool>.adhoc.describe`). Raises as `call`.
        """
        return background.run(self._of.describe(what, timeout=timeout))

    def scale(self, pool: str, size: int | None) -> None:
        """Have `size` worker processes in a pool from now on, on all machines together; None: as the settings say.

        It outlives the pool's processes, and goes before `pools.*.scale`. Returns when the workers are ready. With 0, durable
        calls wait. Needs the rights of an operator.

        Raises:
            Saturated: no process of the pool is running. WorkerLost: not all have as many as they should.
            Fenced: somebody else sets it at the same time.
        """
        background.run(self._of.scale(pool, size))

    def status(self, pools: Sequence[str] = ()) -> Status:
        """Server, engines, stages, and pools, as plain data. `pools`: more pools than the topologies use."""
        return background.run(self._of.status(pools))

    def __enter__(self) -> Self:
        background.run(self._of.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        background.run(self._of.__aexit__(kind, e, tb))

    def __repr__(self) -> str:
        return repr(self._of)
