"""What a change leads to in other runs: in those of windows that close later, and of events that find another state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from dspex.bus import codecs
from dspex.bus.message import Message, content_type
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord, CallRequest, NodeEvent
from dspex.engine.again.change.asked import LaterCalls
from dspex.engine.again.change.contributed import RowAt
from dspex.engine.again.change.given import Given, given, like, paired
from dspex.engine.again.change.readers import SinkReaders
from dspex.engine.client.following.progress import PartitionId
from dspex.engine.client.runs import places
from dspex.engine.client.runs.diff import NOTHING, between
from dspex.engine.client.runs.then.later import LaterDiff, LaterOutput
from dspex.engine.client.runs.then.masking import secrets_of
from dspex.engine.client.runs.tree import Happening
from dspex.engine.replay.added import Added, OnwardWatcher
from dspex.engine.replay.watched import ReplayPlace
from dspex.engine.runtime.arrival import Answered, Arrival, Due

_NOTHING_ELSE: Final = object()
_MADE_UP: Final = 1 << 43  # behind all sequences of messages that a sink has


@dataclass
class Sought:
    """What of other runs may come to what is changed.

    Attributes:
        runs: in which it is changed: that which is forked, and those that begin with what windows made of it.
        tainted: rows that have something of theirs. operators: those that may begin such a run yet.
        follows: whether the change is looked for behind them, since the run itself did not come to it.
    """

    runs: set[str]
    operators: set[str]
    follows: bool
    tainted: set[RowAt] = field(default_factory=set["RowAt"])

    @property
    def pending(self) -> bool:
        """Whether one may begin yet."""
        return self.follows and any(at[0] in self.operators for at in self.tainted)


class LaterWatcher(OnwardWatcher):
    """Has the events of a run go on as they do in its fork, over calls, hops and sinks; and sees what others give otherwise.

    `then`, `now`: the trees of the run and of its fork, with the same ids. `app`: the application. `sought`: other
    runs that may come to what is changed. `calls`: makes those of other runs. `readers`: of sinks.
    """

    def __init__(
        self, app: str, then: Happening, now: Happening, sought: Sought, calls: LaterCalls, readers: SinkReaders
    ) -> None:
        super().__init__()
        self._app, self._run, self._subject, self._secrets = app, then.id, then.node, secrets_of(then, now)
        self._sought, self._coming = sought, dict[PartitionId, set[str]]()  # events that are to come there
        self._readers, self._sent = readers, dict[int, Message | None]()  # what sinks have now, by where they have it
        self._source = now.data if now.data != then.data else _NOTHING_ELSE
        self._events, self._unknown = dict[str, NodeEvent | None](), set[str]()
        self._outputs, self._calls, self._made = dict[str, Mapping[str, Any]](), calls, dict[str, CallRecord]()
        self._gone, self._new = dict[tuple[str, str], Given](), dict[tuple[str, str], Given]()  # may come in another commit
        self.diffs, self.open, self.outputs = list[LaterDiff](), dict[str, None](), list[LaterOutput]()
        asked = {one.id: one for one in now if one.kind == "call"}
        for call in (one for one in then if one.kind == "call" and one.id in asked):
            gave, gives = call.attempts[-1].outputs, asked[call.id].attempts[-1].outputs
            if gave != gives and gives is not None:
                self._outputs[call.id] = gives
            elif gave != gives:
                self._unknown.add(call.id)
        self._own = {call: one for call, one in asked.items() if all(call != other.id for other in then)}
        self._answers, self.numbers = dict[str, CallRecord](), _MADE_UP

    def waits(self, stage: str, partition: int) -> bool:
        """See OnwardWatcher."""
        coming = bool(self._coming.get((self.topology, stage, partition)))
        return coming or self._sought.pending or super().waits(stage, partition)

    async def gave(self, where: ReplayPlace, messages: Sequence[NewMessage]) -> None:
        """See Watcher."""
        for m in messages if self._sought.follows else ():
            for (_, id), one in given(Message(m.subject, m.data, {**(m.headers or {})})) if ".edge." in m.subject else ():
                if one.run in self._sought.runs and one.run != self._run:
                    self._comes(m.subject, id, where.entry)

    def _comes(self, subject: str, id: str, entry: int) -> None:
        """An event is handed on in an entry that is looked for where it arrives."""
        if (to := places.edge(self._app, subject)) is not None:
            self._reach(to, id, entry)

    def _reach(self, to: PartitionId, id: str, entry: int) -> None:
        self.reaches[to] = min(entry, self.reaches.get(to, entry))
        self._coming.setdefault(to, set()).add(id)

    def _sends(self, then: Message, now: Message | None, entry: int) -> None:
        """A sink has something else than it had in an entry: it is looked for where that is read."""
        for to in self._readers.of(then):
            self._sent[then.sequence] = now
            self._reach(to, str(then.sequence), entry)

    def arrives(self, where: ReplayPlace, arrival: Arrival, *, again: bool) -> Arrival:
        """See Watcher."""
        match arrival.what:
            case NodeEvent() as event:
                coming, is_sent = self._coming.get((self.topology, where.stage, where.partition), set[str]()), False
                if arrival.place.input == "source" and self._readers.has(self.topology, where.stage):
                    coming.discard(str(arrival.place.sequence))
                    is_sent = arrival.place.sequence in self._sent
                coming.discard(event.origin.id)
                return arrival._replace(what=self._read(arrival.place.sequence, event) if is_sent else self._event(event))
            case Answered() as answered:
                return arrival._replace(what=self._answered(answered))
            case Due(what=NodeEvent() as event) as due:
                return arrival._replace(what=due._replace(what=self._event(event) or event))
            case Due(what=Answered() as answered) as due:
                return arrival._replace(what=due._replace(what=self._answered(answered) or answered))
            case _:
                return arrival

    def _read(self, sequence: int, event: NodeEvent) -> NodeEvent | None:
        """What a source reads of a sink, as it is now."""
        now = self._sent[sequence]
        return event._replace(data=now.data, content_type=content_type(now.headers) or codecs.JSON) if now is not None else None

    def _event(self, event: NodeEvent) -> NodeEvent | None:
        id, is_own = event.origin.id, event.origin.run == self._run and event.call is None
        if (
            is_own
            and event.origin.subject == self._subject
            and event.origin.cause is None
            and self._source is not _NOTHING_ELSE
        ):
            data, media = codecs.encode(self._source, "auto")
            return event._replace(data=data, content_type=media)
        if id not in self._events:
            return event
        now = self._events[id]
        return event._replace(origin=now.origin, data=now.data, content_type=now.content_type) if now is not None else None

    def _answered(self, answered: Answered) -> Answered | None:
        call = answered.record.call
        if call in self._unknown:
            return None
        if (outputs := self._outputs.get(call)) is not None:
            answered = answered._replace(record=replace(answered.record, outputs=outputs, error=None))
        elif (made := self._made.get(call)) is not None:
            answered = answered._replace(record=replace(answered.record, outputs=made.outputs, error=made.error))
        if (now := next((now for now, then in self.renamed.items() if then == call), None)) is not None:
            answered = answered._replace(record=replace(answered.record, call=now))
        return answered._replace(event=self._events.get(call, answered.event))

    async def gave_other(self, where: ReplayPlace, messages: Sequence[NewMessage], stored: Sequence[Message | None]) -> None:
        """See Watcher."""
        now = [Message(m.subject, m.data, {**(m.headers or {})}) for m in messages]
        theirs, mine = self._in(m for m in stored if m is not None), self._in(now)
        for id in [id for id in theirs if id not in mine]:
            if (earlier := like(self._new, id, theirs[id])) is not None:  # it came earlier now
                await self._settle(id, theirs.pop(id), self._new.pop(earlier), earlier[1], where.entry)
        for id in [id for id in mine if id not in theirs]:
            if (then_id := like(self._gone, id, mine[id])) is not None:  # it comes later now
                await self._settle(then_id, self._gone.pop(then_id), mine.pop(id), id[1], where.entry)
        for id, (a, b, now_id) in paired(theirs, mine).items():
            if a is not None and b is not None:
                await self._settle(id, a, b, now_id, where.entry)
                continue
            self._goes_on(id, a, b, where.entry)
            if b is not None:
                await self._comes_newly(id, b, where)
            self._gone |= {id: a} if a is not None else {}
            self._new |= {id: b} if b is not None else {}

    def _in(self, messages: Iterable[Message]) -> dict[tuple[str, str], Given]:
        """What a commit holds, without what asks for a further attempt at a call: that is the same call."""
        found = (one for m in messages for one in given(m))
        return {id: one for id, one in found if one.asked is None or one.asked.try_number == 1}

    def _goes_on(self, id: tuple[str, str], a: Given | None, b: Given | None, entry: int) -> None:
        """Have what arrives of something be what it is now."""
        if a is not None and b is not None and a.same(b) and id[1] not in self.renamed.values():
            self._events.pop(id[1], None)
            self._sent.pop(a.stored.sequence if a.stored is not None else 0, None)
            return
        moves = id[0] == "event" and a is not None and b is not None and a.to != b.to
        if id[0] in ("event", "call"):
            self._events[id[1]] = b.event if b is not None and not moves else None
        if moves and b is not None:
            self._hands_on(b, entry)
        if id[0] == "event" and a is not None:
            self._comes(a.to, id[1], entry)
        if a is not None and a.stored is not None:
            self._sends(a.stored, b.stored if b is not None else None, entry)

    async def _settle(self, id: tuple[str, str], a: Given, b: Given, now_id: str, entry: int) -> None:
        """What was given then and is given now, maybe in another commit, and by another id."""
        if id[1] != now_id and id[0] == "call":
            self.renamed[now_id] = id[1]
        self.drop_added(now_id)
        self._goes_on(id, a, b, entry)
        if a.same(b) or not self._differ(id, a, b):
            return
        if id[0] == "output":
            self.outputs.append(LaterOutput(b.run, b.step, b.data))
        made = self._answers.get(now_id)
        if id[0] == "call" and b.asked is not None and (made := made or await self._calls.answer(b.asked)) is not None:
            self._made[id[1]] = made

    async def _comes_newly(self, id: tuple[str, str], b: Given, where: ReplayPlace) -> None:
        """Have what was not given then go on: to where it is handed, to who reads that sink; of a call, to its end."""
        if id[0] == "event":
            self._hands_on(b, where.entry)
        elif id[0] == "call" and b.asked is not None and b.event is not None and not await self.is_recorded(id[1], b.event):
            if (made := await self._answer(id[1], b.asked)) is not None:
                self._answers[id[1]] = made = replace(made, call=id[1])  # a worker was asked under another id
                self.add_answer(where.stage, where.partition, where.entry, made, b.event)
        elif b.stored is not None:
            for to in self._readers.of(b.stored):
                self.numbers += 1
                sent = b.stored._replace(sequence=self.numbers, time=self.clock)
                self.add(to, Added(id[1], where.entry, self.clock, sent))

    def _hands_on(self, b: Given, entry: int) -> None:
        if (to := places.edge(self._app, b.to)) is not None and b.event is not None:
            self.add(to, Added(b.event.origin.id, entry, self.clock, b.event))

    async def _answer(self, id: str, asked: CallRequest) -> CallRecord | None:
        """The end of a call that was not made then: of the run itself, as its fork has it."""
        if (own := self._own.get(id)) is None:
            return await self._calls.answer(asked, new=True) if asked.run != self._run else None
        last = own.attempts[-1]
        error = {"type": "ProgramError", "message": last.error} if last.error is not None else None
        took = last.elapsed.total_seconds() if last.ended else 0.0
        return CallRecord(id, 0, 0, self.topology, asked.node, outputs=last.outputs, error=error, elapsed=took)

    def finish(self) -> None:
        """Note what was given then alone, or is given now alone: all is replayed."""
        for id, a in self._gone.items():
            self._differ(id, a, None)
        for id, b in self._new.items():
            differs = self._differ(id, None, b)
            if differs and id[0] == "call" and id[1] not in self._answers and not self._calls.open:
                self.open[f"{b.step} is asked where it was not then, and not called: what would follow is not known"] = None
            elif differs and id[0] == "output":
                self.outputs.append(LaterOutput(b.run, b.step, b.data))

    def _differ(self, id: tuple[str, str], a: Given | None, b: Given | None) -> bool:
        """Note what differs of something of another run; whether anything does."""
        one = a or b
        if one is None or id[0] == "event" or one.run == self._run:
            return False
        there, here = (NOTHING if given is None else given.data for given in (a, b))
        for data in (there, here):
            self._secrets.learn(data)
        found = [LaterDiff(one.run, *step) for step in self._between(one.step, there, here)]
        self.diffs += found
        return bool(found)

    def _between(self, step: str, a: Any, b: Any) -> Iterator[tuple[str, str | None, Any, Any]]:
        """What differs, a thing that only one has as a whole."""
        if a is NOTHING or b is NOTHING:
            then, now = (value if value is NOTHING else self._secrets.masked(value) for value in (a, b))
            yield step, None, then, now
            return
        yield from ((one.step, one.field, one.a, one.b) for one in between(step, a, b, self._secrets))
