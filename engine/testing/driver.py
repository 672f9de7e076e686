"""The testing driver: a topology without a broker and without a model, on a virtual clock. Synchronous and deterministic.

    with dspex.testing.Driver(topology) as d:
        d.answer("classify", {"intent": "lost_card", "urgency": 5})
        d.publish("support.messages", {"customer": "c1", "text": "stolen!"})
        assert d.outputs("support.urgent")[0]["intent"] == "lost_card"

It runs the real engine on the in-memory bus, which keeps the same contract as NATS; only the workers are replaced, by the
answers that the test gives. It has a thread and a loop of its own, so it also works inside a running event loop.

`__tracebackhide__` keeps its frames out of pytest's tracebacks: what a person wants to see is the line of the test.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import ExitStack
from datetime import datetime
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from dspex.bus import subjects
from dspex.bus.memory.faults import Faults, Luck
from dspex.bus.message import Event, Message, derived_id
from dspex.bus.serving import payloads
from dspex.bus.settings.duration import Duration, seconds
from dspex.engine.client import letters
from dspex.engine.client.client import Client
from dspex.engine.client.following.naming import at_place
from dspex.engine.client.letters import DeadLetter
from dspex.engine.client.runs.diff import Replay
from dspex.engine.client.runs.export import RunFile
from dspex.engine.client.runs.outputs import read_event
from dspex.engine.client.runs.steps import Step, steps
from dspex.engine.client.status.approvals import Approval
from dspex.engine.graph.approvals import AcceptOrReject
from dspex.engine.graph.graph import Graph, HasGraph, graphs_of
from dspex.engine.testing.engines import Engines
from dspex.engine.testing.names import TestedNames, refuse_arguments
from dspex.engine.testing.places import Ground, InMemory
from dspex.engine.testing.thread import OwnThread, insist
from dspex.engine.testing.workers import Answers, Workers

__all__ = ["Driver", "Faults"]

T = TypeVar("T")
APP = "test"
FIRST = "019b76da-a800-7000-8000-000000000000"  # ids are derived from it: of that time, and nothing in them is random


class Driver:
    """Runs topologies for a test.

    Args:
        topologies: run together, as one application.
        seed: decides every choice and every fault; two drivers with one seed do the same.
        faults: what goes wrong on the bus; nothing by default. What the test itself does is done again until it passes.
        bus: "nats" starts a nats-server for this driver, which ends with it; the clock is virtual there, too.

    Every argument that is wrong, and every use outside of `with`, raises ConfigError or TopologyError.
    """

    def __init__(
        self, *topologies: HasGraph, seed: int = 0, faults: Faults | None = None, bus: Literal["memory", "nats"] = "memory"
    ) -> None:
        refuse_arguments(topologies, seed, faults, bus)
        self._graphs: list[Graph] = graphs_of(topologies)
        self._names = TestedNames(self._graphs)
        self._thread = OwnThread()
        self._ends = ExitStack()  # what was opened
        self._seed, self._faults = seed, faults
        self._bus = bus
        self._letters_seen = False
        self._published = 0

    # -- life -----------------------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        __tracebackhide__ = True
        self._thread.begin(self._begin)
        return self

    def _begin(self) -> None:
        try:
            self._open()
        except BaseException:
            self._ends.close()
            raise

    def _open(self) -> None:
        self._place = self._place_of(self._bus)
        self._ends.callback(self._place.close)
        self._loop = self._place.loop
        self._client = Client(bus=self._run(self._place.connect()), app=APP)
        luck = Luck(self._seed + 1, self._place.luck.faults)
        self._engines = Engines(self._place.connect, APP, self._graphs, luck)
        self._ends.callback(lambda: self._run(self._engines.kill()))
        self._run(self._engines.start())
        pools = sorted({n.call.pool for g in self._graphs for n in g.calls})
        self._workers = Workers(self._place, APP, pools)
        self._ends.callback(lambda: self._run(self._workers.kill()))
        self._run(self._workers.start())
        self._loop.advance(0.5)

    def _place_of(self, bus: str) -> Ground:
        if bus == "memory":
            return InMemory(self._seed, self._faults)
        from dspex.engine.testing.wired import OnServer  # nats-py takes a while to import

        return OnServer(self._seed, self._faults)

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        __tracebackhide__ = True
        try:
            if kind is None:
                self._check_end()
        finally:
            self._thread.end(self._ends.close)

    def _check_end(self) -> None:
        __tracebackhide__ = True
        self._check()
        unseen = [] if self._letters_seen else self._thread.do(lambda: self._run(insist(self._letters)))
        if unseen:
            first = unseen[0]
            raise AssertionError(
                f"{len(unseen)} dead letter(s) that the test did not ask for; the first, of {first.node}: {first.message}\n"
                f"{first.traceback}"
            )
        self._place.luck.faults = Faults()
        if differs := self._thread.do(lambda: self._run(self._engines.differs(self._client.bus))):
            raise AssertionError(differs)

    def _run(self, coroutine: Any) -> Any:
        return self._loop.run(coroutine, advance=True)

    def _do(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine, again if the bus fails, then all that follows from it at this instant."""

        __tracebackhide__ = True

        def go() -> T:
            result: T = self._run(insist(make))
            self._loop.settle()
            return result

        result = self._thread.do(go)
        self._check()
        return result

    def _check(self) -> None:
        __tracebackhide__ = True
        if self._engines.failure is not None:
            raise self._engines.failure
        if self._workers.problem is not None:
            problem, self._workers.problem = self._workers.problem, None
            raise problem

    # -- what a test does -----------------------------------------------------------------------------------------
    def publish(
        self,
        subject: str,
        data: Any,
        *,
        id: str | None = None,
        key: str | None = None,
        session: str | None = None,
        at: datetime | None = None,
        after: Duration | None = None,
    ) -> str:
        """Publish an event and let everything happen that needs no time. The run's id.

        `at`: its event time. `after`: it waits so long before it is taken, as with `Client.publish(after=)`.
        Raises NoAnswer where it reached a recorded node that has none.
        """
        __tracebackhide__ = True
        self._published += 1
        id = id or derived_id(FIRST, f"driver/{self._seed}", self._published)
        run = self._do(lambda: self._client.publish(subject, data, id=id, key=key, session=session, time=at, after=after))
        return self._do(lambda: at_place(self._client.bus, run.id))

    def answer(self, node: str, outputs: Answers, *, after: Duration = 0) -> None:
        """From now on, calls of `node` give `outputs` (or what the function makes of the inputs), `after` a while."""
        __tracebackhide__ = True
        self._thread.refuse_outside()
        self._workers.answer(self._names.call(node), outputs, seconds(after))

    def fail(self, node: str, error: Exception, *, times: int = 1) -> None:
        """The next `times` calls of `node` fail with `error`. A plain exception is a ProgramError, as in a worker."""
        __tracebackhide__ = True
        self._thread.refuse_outside()
        self._workers.fail(self._names.call(node), error, times)

    def advance(self, by: Duration) -> None:
        """Let time pass: retries, deadlines, heartbeats, redeliveries."""
        __tracebackhide__ = True
        self._thread.do(lambda: self._loop.advance(seconds(by)))
        self._check()

    def crash(self, what: Literal["engine", "workers", "all"] = "engine") -> None:
        """Kill the engine, the workers or both, as SIGKILL would, and start them again."""
        __tracebackhide__ = True
        self._names.one_of("crash", what, ("engine", "workers", "all"))

        def go() -> None:
            if what in ("engine", "all"):
                self._run(self._engines.kill())
                self._run(self._engines.start())
            if what in ("workers", "all"):
                self._run(self._workers.kill())
                self._run(self._workers.start())
            self._loop.advance(0.5)

        self._thread.do(go)
        self._check()

    def replay(self, path: str | PathLike[str] | RunFile, *, ignore: Collection[str] = (), jobs: int | None = None) -> Replay:
        """Do a run again that was exported (`Run.export`), by itself: nothing of it reaches what the driver runs. Its calls are
        answered as they were; models and parameters are those of then. Of a folder, all files in it: one in which a call is
        made that was not made then differs there, and one that is damaged or incomplete stands in `incomplete`.

        `ignore`: fields that may differ. `jobs`: processes that do the files of a folder; left out, one for each processor
        where there are a hundred or more, and this process has no threads of its own. Raises TopologyError for a run of a
        topology that the driver does not run. Of one file: Divergence where it makes such a call; RecordingIncomplete;
        DecodeError for what is no file of a run.
        """
        __tracebackhide__ = True
        from dspex.engine.again.files import replayed

        return self._thread.do(lambda: replayed(self._graphs, path, ignore, jobs, threads=2))

    # -- what a test looks at -------------------------------------------------------------------------------------
    def outputs(self, subject: str) -> list[Any]:
        """The data of all events of a sink, in order. Raises ConfigError for a subject of no sink or source."""
        __tracebackhide__ = True
        return [e.data for e in self.events(subject)]

    def events(self, subject: str) -> list[Event[Any]]:
        """All events of a sink, in order. Raises ConfigError for a subject that no sink or source of the topologies has."""
        __tracebackhide__ = True
        self._names.stored(subject)
        return [read_event(m) for m in self._do(lambda: self._stored(subject))]

    async def _stored(self, subject: str) -> list[Message]:
        bus = self._client.bus
        stream = await bus.stream_of(subject)
        info = await bus.stream(stream) if stream else None
        found = await bus.scan(info.name, [subject], start=1, stop=info.last) if info else []
        return [await payloads.required(bus, APP, m) for m in found]

    def calls(self, node: str) -> list[Step]:
        """The records of a node's calls, in order of their completion. Raises ConfigError where it is no recorded node."""
        __tracebackhide__ = True
        known = self._names.call(node)
        return self._do(lambda: self._steps(known))

    async def _steps(self, node: str) -> list[Step]:
        stored = await self._stored(subjects.record(APP, "*", "*", "*", "*"))
        inputs = {n.name: n.call.inputs for g in self._graphs for n in g.calls}
        return [s for s in steps(stored, inputs) if s.node == node]

    def state(self, node: str, key: str) -> Any:
        """What a node with state keeps of a key; None where it keeps nothing. Raises ConfigError where it is no such node."""
        __tracebackhide__ = True
        known = self._names.state(node)
        return self._do(lambda: self._engines.state(known, key))

    def approvals(self) -> list[Approval]:
        """What waits for a person's decision, the oldest first."""
        __tracebackhide__ = True
        return self._do(self._approvals)

    async def _approvals(self) -> list[Approval]:
        return [one async for one in self._client.approvals()]

    def decide(
        self, approval: str | Approval, decision: AcceptOrReject, *, edit: Mapping[str, Any] | None = None, note: str = ""
    ) -> None:
        """Decide about something that waits, as `Client.decide` does."""
        __tracebackhide__ = True
        self._do(lambda: self._client.decide(approval, decision, edit=edit, note=note))

    def dead_letters(self) -> list[DeadLetter]:
        """All dead letters. A test that never asks fails at its end if there are any."""
        __tracebackhide__ = True
        self._letters_seen = True
        return self._do(self._letters)

    async def _letters(self) -> list[DeadLetter]:
        return [d async for d in letters.listing(self._client.bus, APP)]

    def redrive(self, *, time: datetime | Literal["now"] | None = None) -> int:
        """Run the events of all dead letters again. How many. `time`: their event time from now on; late events need one."""
        __tracebackhide__ = True
        return self._do(lambda: self._redrive(time))

    async def _redrive(self, time: datetime | Literal["now"] | None) -> int:
        found = await insist(self._letters)
        return await insist(lambda: self._client.redrive(found, time=time))  # again from the first: none runs twice
