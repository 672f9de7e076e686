"""A run of the past, done again.

The real engine runs on the in-memory bus, with the clock and the state of then; the source event of the run lies where it lay,
so all ids are the same. Its calls are answered by what was recorded for equal requests; others are made by workers of the
application, where that is wanted. Nothing is written anywhere: what came of it is returned. Where `handle` alone says that
nothing differs, no engine is started (`unchanged.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, RecordingIncomplete, TopologyError
from dspex.bus.memory.faults import Luck
from dspex.bus.port import NewMessage, StreamConfig
from dspex.bus.records import Usage
from dspex.bus.seldom import silent
from dspex.bus.serving.programs.names import StateName
from dspex.bus.serving.programs.states import SavedStates
from dspex.engine.again.answering import Alter, Answering, CallsSoFar, Make, Mode, NotRecorded
from dspex.engine.again.change.taken_over import taken_over
from dspex.engine.again.event import event_of, id_in
from dspex.engine.again.ground import OutsideLoop
from dspex.engine.again.making import made
from dspex.engine.again.state import begun_with
from dspex.engine.again.stopped import stopped
from dspex.engine.again.unchanged import Unchanged
from dspex.engine.client import publish as publishing
from dspex.engine.client.client import Client
from dspex.engine.client.runs.diff import Diff, by_step, compare
from dspex.engine.client.runs.export import RunFile
from dspex.engine.client.runs.then.masking import secrets_of
from dspex.engine.client.runs.then.recorded import RecordedCalls
from dspex.engine.client.runs.tree import changed
from dspex.engine.client.status.approvals import Approval
from dspex.engine.graph.graph import Graph
from dspex.engine.testing.engines import Engines
from dspex.engine.testing.places import InMemory

_BEGIN: Final = (
    2.0  # seconds before the run, when the engine begins: whole ones, so that the clock has the very time of the event
)
_STEP: Final = 1.0  # seconds that pass between two looks
_LATE: Final = 600.0  # seconds after which a decision is late
_LONGER: Final = 60.0  # seconds that a run may take longer than it did: attempts wait with jitter


@dataclass(frozen=True)
class Repeated:
    """What came of doing a run again.

    Attributes:
        file: as the file of a run: `file.root` is the tree of what it did, `file.info` what is known of it, under the id of the
            run that was done again.
        served: calls that were read back. called: calls that were made, by workers. usage: tokens and cost of those.
        diff: what differs from the recorded run.
        without: why it began without the state of then; "" where it had that, or no operator keeps anything.
    """

    file: RunFile
    served: int
    called: int
    usage: Usage
    diff: Diff
    without: str = ""

    @property
    def tokens(self) -> int:
        """That were spent."""
        return self.usage.input_tokens + self.usage.output_tokens

    @property
    def cost(self) -> float:
        """In USD, as far as prices are known."""
        return self.usage.cost or 0.0


async def repeat(
    client: Client | None,
    file: RunFile,
    graphs: Sequence[Graph],
    *,
    mode: Mode = "strict",
    make: Make | None = None,
    alter: Alter | None = None,
    states: Collection[str] = (),
    told: Callable[[CallsSoFar], None] | None = None,
    whole: bool = True,
) -> Repeated:
    """Do a run again with these graphs. Several may be done at once, each in a thread of its own.

    A recorded call answers an equal request: of the same operator, with the same inputs, the same program, signature, models
    and saved state. What it ended in then, it ends in again: attempts that failed, their errors, their time. No sink, no stream
    and no state of the application is written; a call that is made is one of `Client.call`, which waits for a free slot.

    Args:
        client: of the application, for calls; None: none is made, and nothing is asked of any server.
        file: of the run: `Run.file(state=True)`, or `load(path)` for one that was exported.
        graphs: the topology of the run as it is now (`Topology.graph`, with the defaults of the settings: `with_defaults`), and
            others that take what it sends.
        mode: "strict": no call is made, and one that has no recorded answer raises Divergence; "hybrid": such a call is made;
            "live": all calls are.
        make: makes calls in the place of the client.
        alter: which outputs a fork changes. states: names of saved states that its calls have.
        told: hears of the calls so far, now and then, in a thread of its own.
        whole: calls are compared by all that is asked, see RecordedCalls.

    Raises:
        TopologyError: DX235, the topology of the run is not among the graphs. Divergence. Saturated: a pool has no worker.
        RecordingIncomplete: it was not over. Whatever the server says.
    """
    if make is None and client is not None:
        make = partial(made, client.bus, client.app)
    check(file, graphs, mode, make)
    meant = await _states(client, graphs, states) if client is not None else None
    calls = [call for call in file.calls if mode == "strict" or not any(step.wrong for step in call.attempts)]
    recorded = partial(RecordedCalls, calls, meant, whole=whole)
    if mode == "strict" and alter is None and Unchanged(graphs).is_same(file, recorded()):
        return Repeated(file, len(calls), 0, Usage(), no_difference(file))
    app = client.app if client is not None else "again"
    again = _Again(app, file, graphs, mode, make, alter, recorded(), told, OutsideLoop(asyncio.get_running_loop()))
    done = asyncio.get_running_loop().run_in_executor(None, again.do)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        again.give_up()
        await asyncio.wait([done])
        if not done.cancelled():
            done.exception()  # else asyncio reports that nobody asked for it
        raise


async def _states(client: Client, graphs: Sequence[Graph], more: Collection[str]) -> dict[str, str]:
    """What names of saved states mean now. `more`: others. Raises RunError (DX627) for one that means nothing."""
    names = {node.call.spec.state for graph in graphs for node in graph.calls if node.call.spec.state}
    names |= {*more}
    saved = SavedStates(client.bus, client.app)
    return {name: (await saved.find(StateName.read(name))).name for name in names}


def check(file: RunFile, graphs: Sequence[Graph], mode: Mode, make: Make | None) -> None:
    """Raise TopologyError, ConfigError, RecordingIncomplete where it cannot be done."""
    if file.root.changed:
        raise changed(file.root)
    if file.info.status == "running":
        fix = "wait for its end: dspex runs wait; a file is made again: dspex runs export"
        raise RecordingIncomplete(f"run {file.info.id} was not over when this was recorded", run=file.info.id, fix=fix)
    if file.lost:
        why = f"{', '.join(file.lost)}: secret, and no text, so the file of run {file.info.id} has nothing that fits there"
        raise RecordingIncomplete(why, run=file.info.id, fix=f"from the server, which has it: dspex replay {file.info.id}")
    if file.info.topology not in {graph.name for graph in graphs}:
        fix = "name it: --with module:attr"
        raise TopologyError(f"there is no topology {file.info.topology!r} in the code", code="DX235", fix=fix)
    if make is None and mode != "strict":
        raise ConfigError(f"in mode {mode} calls are made, and there is no server", code="DX105", fix='mode="strict"')


def no_difference(file: RunFile) -> Diff:
    """What `compare` says of a run and itself."""
    used = file.info.usage
    tokens, cost = used.input_tokens + used.output_tokens, used.cost or 0.0
    return Diff(True, None, [], (tokens, tokens), (cost, cost), [*by_step(file.root)], (file.info, file.info))


class _Again:
    """One run that is done again, in a thread of its own."""

    def __init__(
        self,
        app: str,
        file: RunFile,
        graphs: Sequence[Graph],
        mode: Mode,
        make: Make | None,
        alter: Alter | None,
        recorded: RecordedCalls,
        told: Callable[[CallsSoFar], None] | None,
        loop: OutsideLoop,
    ) -> None:
        self._app, self._file, self._told, self._loop, self._run = app, file, told, loop, id_in(file)
        self._graphs = taken_over(graphs, file, self._run)
        stored = file.place.time if file.place is not None else file.root.time.timestamp()
        self._place = InMemory(start=stored - _BEGIN, loop=loop)
        pools = sorted({node.call.pool for graph in graphs for node in graph.calls} | {p for g in graphs for p in g.pools})
        self._recorded = recorded
        self._stopped = False
        self._decisions = {one.approval: one for one in reversed(file.state.decisions)}  # the first one of each counts
        self._waits: list[Approval] = []
        self._looked = -1  # the latest entry of a log when it was last looked at what is open
        self._answering = Answering(
            self._place, loop, app, pools, self._run, recorded, mode, make, alter, hidden=bool(file.hidden)
        )

    def give_up(self) -> None:
        """End it soon. From another thread."""
        self._stopped = True
        self._loop.give_up()

    def do(self) -> Repeated:
        """Do it, from the begin to the end."""
        run = partial(self._loop.run, advance=True)
        with silent(), ExitStack() as ends:
            ends.callback(self._place.close)
            run(self._lay_stream())
            engines = Engines(self._place.connect, self._app, self._graphs, Luck(0, self._place.luck.faults))
            ends.callback(lambda: run(engines.kill()))
            run(engines.start())
            without = run(begun_with(self._client.bus, self._app, engines, self._file.state, self._place.now))
            ends.callback(lambda: run(self._answering.kill()))
            run(self._answering.start())
            self._loop.advance(_BEGIN - self._loop.time())
            run(self._publish())
            self._until_done(engines)
            tree = run(self._client.run(self._run).file())
            tree = replace(tree, info=replace(tree.info, id=self._file.info.id))
        spent = self._answering.spent
        diff = compare(self._file.root, tree.root, (self._file.info, tree.info))
        return Repeated(tree, spent.served, spent.called, spent.usage, diff, without)

    async def _lay_stream(self) -> None:
        """Have the source event get the place that it had: its stream, made when that was, and its sequence there."""
        self._client = Client(bus=await self._place.connect(), app=self._app)
        if (place := self._file.place) is not None:
            patterns = {node.source.subject for graph in self._graphs for node in graph.sources}
            patterns = {pattern for pattern in patterns if subjects.matches(pattern, self._file.root.node)}
            made = self._place.server.ensure_stream(StreamConfig(place.stream, sorted(patterns)))
            made.begin_at(place.sequence, place.created)

    async def _publish(self) -> None:
        await publishing.store(self._client.bus, self._app, event_of(self._file))

    def _until_done(self, engines: Engines) -> None:
        """Let time pass until nothing of it is open. Raises what ended it."""
        info, answering, clock, run = self._file.info, self._answering, self._loop.time, partial(self._loop.run, advance=True)
        most = clock() + _LONGER + ((info.finished or info.started) - info.started).total_seconds()
        self._loop.settle()
        while True:
            if engines.failure is not None:
                raise engines.failure
            if answering.problem is not None:
                raise answering.problem
            if answering.failure is not None:
                raise run(self._diverged(answering.failure))
            if self._told is not None:
                self._told(answering.spent)
            if self._stopped or clock() > most + answering.ran or run(self._done()):
                return
            self._loop.advance(run(self._decide()))

    async def _decide(self) -> float:
        """Decide what was decided by now, about what waits. Seconds that may pass until it is looked again.

        For a decision that came late nobody waits: the clock would have to go on for days.
        """
        now, bus = self._place.now, self._client.bus
        for one in self._waits:
            then = self._decisions.get(one.id)
            if then is not None and (then.time <= now or then.time > one.since.timestamp() + _LATE):
                del self._decisions[one.id]
                to = subjects.decision(self._app, one.topology, one.stage, one.partition)
                headers = {subjects.DECIDE: one.node, subjects.RUN: self._run}
                await bus.publish(NewMessage(to, then.about(one.digest).pack(), headers))
        ahead = [one.time - now for one in self._decisions.values() if one.time > now]
        return min(_STEP, *ahead) if ahead else _STEP

    async def _done(self) -> bool:
        """Whether it is over. It is looked at anew once a log went on: of many partitions that takes long, and a run may wait
        for minutes."""
        last = await self._client.bus.last(subjects.stream(self._app), subjects.log(self._app, "*", "*", "*"))
        if last is not None and last.sequence > self._looked:
            self._looked = last.sequence
            if (await self._client.run(self._run).info()).status != "running":
                return True
            self._waits = [one async for one in self._client.approvals()] if self._decisions else []
        return False

    async def _diverged(self, failure: BaseException) -> BaseException:
        if not isinstance(failure, NotRecorded):
            return failure
        request, run = failure.request, self._client.run(self._run)
        step = next(iter([s.id async for s in run.steps() if s.call == request.call]), request.node)
        then = next((call for call in self._file.calls if call.label == step), None)
        then = then or self._recorded.nearest(request.node)
        return stopped(run.id, step, request, then, self._graphs, secrets_of(self._file.root))
