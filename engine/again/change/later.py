"""What a change leads to in other runs: in those of windows that close later, and of events that find another state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from dspex.bus import codecs
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord, NodeEvent
from dspex.engine.again.change.asked import LaterCalls
from dspex.engine.again.change.contributed import RowAt
from dspex.engine.again.change.given import Given, given, paired
from dspex.engine.client.runs import places
from dspex.engine.client.runs.diff import NOTHING, between
from dspex.engine.client.runs.then.later import LaterDiff, LaterOutput
from dspex.engine.client.runs.then.masking import secrets_of
from dspex.engine.client.runs.tree import Happening
from dspex.engine.replay.onward import OnwardWatcher
from dspex.engine.replay.watched import ReplayPlace
from dspex.engine.runtime.arrival import Answered, Arrival, Due

_NOTHING_ELSE: Final = object()


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
    """Has the events of a run go on as they do in its fork, over calls and hops; and sees what others give otherwise.

    `then`, `now`: the trees of the run and of its fork, with the same ids. `app`: the application. `sought`: other
    runs that may come to what is changed. `calls`: makes those of other runs.
    """

    def __init__(self, app: str, then: Happening, now: Happening, sought: Sought, calls: LaterCalls) -> None:
        super().__init__()
        self._app, self._run, self._subject, self._secrets = app, then.id, then.node, secrets_of(then, now)
        self._sought, self._coming = sought, dict[tuple[str, int], set[str]]()  # by partition, events that are to come there
        self._source = now.data if now.data != then.data else _NOTHING_ELSE
        self._events, self._unknown = dict[str, NodeEvent | None](), set[str]()
        self._outputs, self._calls, self._made = dict[str, Mapping[str, Any]](), calls, dict[str, CallRecord]()
        self.diffs, self.open, self.outputs = list[LaterDiff](), dict[str, None](), list[LaterOutput]()
        asked = {one.id: one for one in now if one.kind == "call"}
        for call in (one for one in then if one.kind == "call" and one.id in asked):
            gave, gives = call.attempts[-1].outputs, asked[call.id].attempts[-1].outputs
            if gave != gives and gives is not None:
                self._outputs[call.id] = gives
            elif gave != gives:
                self._unknown.add(call.id)

    def waits(self, stage: str, partition: int) -> bool:
        """See OnwardWatcher."""
        return self._sought.pending or bool(self._coming.get((stage, partition)))

    async def gave(self, where: ReplayPlace, messages: Sequence[NewMessage]) -> None:
        """See Watcher."""
        for m in messages if self._sought.follows else ():
            for (_, id), one in given(Message(m.subject, m.data, {**(m.headers or {})})) if ".edge." in m.subject else ():
                if one.run in self._sought.runs and one.run != self._run:
                    self._comes(m.subject, id, where.entry)

    def _comes(self, subject: str, id: str, entry: int) -> None:
        """An event is handed on in an entry that is looked for where it arrives."""
        if (to := places.edge(self._app, subject)) is not None:
            self.reaches[to[1:]] = min(entry, self.reaches.get(to[1:], entry))
            self._coming.setdefault(to[1:], set()).add(id)

    def arrives(self, where: ReplayPlace, arrival: Arrival, *, again: bool) -> Arrival:
        """See Watcher."""
        match arrival.what:
            case NodeEvent() as event:
                self._coming.get((where.stage, where.partition), set[str]()).discard(event.origin.id)
                return arrival._replace(what=self._event(event))
            case Answered() as answered:
                return arrival._replace(what=self._answered(answered))
            case Due(what=NodeEvent() as event) as due:
                return arrival._replace(what=due._replace(what=self._event(event) or event))
            case Due(what=Answered() as answered) as due:
                return arrival._replace(what=due._replace(what=self._answered(answered) or answered))
            case _:
                return arrival

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
        return event._replace(data=now.data, content_type=now.content_type) if now is not None else None

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
        then = [m for m in stored if m is not None]
        theirs, mine = (dict(found for m in some for found in given(m)) for some in (then, now))
        for id, (a, b, now_id) in paired(theirs, mine).items():
            if id[1] != now_id and id[0] == "call":
                self.renamed[now_id] = id[1]
            if a is not None and b is not None and a.same(b):
                continue
            if a is None and id[0] == "event":
                self.open[f"what comes to {b.step if b else ''} and did not then is not followed"] = None
            if a is not None and id[0] == "event":
                self._comes(a.to, id[1], where.entry)
            if id[0] in ("event", "call"):
                self._events[id[1]] = b.event if b is not None else None
            if not self._differ(id, a, b) or b is None:
                continue
            if id[0] == "call":
                await self._call(id[1], b, was=a is not None)
            elif id[0] == "output":
                self.outputs.append(LaterOutput(b.run, b.step, b.data))

    async def _call(self, id: str, one: Given, *, was: bool) -> None:
        """Have a call of another run made. `was`: it was asked then, too."""
        if not was:
            self.open[f"{one.step} is asked where it was not then, and not called: what would follow is not known"] = None
        elif one.asked is not None and (made := await self._calls.answer(one.asked)) is not None:
            self._made[id] = made

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
