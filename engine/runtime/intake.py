"""What a stage does with an event of its source: walk it, or say what becomes of one that failed. Nothing here is awaited."""

from __future__ import annotations

import structlog

from dspex.bus import codecs, subjects
from dspex.bus.errors import RetryLater
from dspex.bus.message import Message, cause_of, event_time, message_id
from dspex.bus.records import Origin
from dspex.engine.runtime.compile import Stage
from dspex.engine.runtime.failure import Failure, guard, letter, refusal, run_again, source_work
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.settle import Counters, Poison
from dspex.engine.runtime.walk import Output, Walk

_log = structlog.get_logger("dspex.engine")

_READ_HERE = subjects.OWN_HEADERS | {subjects.TRACEPARENT}


class Intake:
    """The source events of one stage.

    Attributes:
        created: when the source stream was made; ids of events without one depend on it.
        poison: see Poison; shared with the inbox of the stage.
    """

    def __init__(self, app: str, stage: Stage, stream: str, limit: int, counters: Counters, poison: Poison) -> None:
        self.app = app
        self.stage = stage
        self.stream = stream
        self.limit = limit
        self.counters = counters
        self.created = 0.0
        self.poison = poison
        self._walk = Walk(stage.graph.name, limit)

    @property
    def id(self) -> str:
        """Of the event that was walked last."""
        return self._walk.origin.id

    def walk(self, p: Partition, m: Message, clock: float) -> list[Output]:
        """All that an event causes now."""
        walk = self._walk
        walk.begin(self._origin(m), clock)
        self.counters.events += 1
        if self.poison and (why := self.poison.get((p.index, "source", m.sequence))):
            node = self.stage.source.name
            failure: Failure | None = Failure(refusal(why, node), node)
        else:
            failure = guard(self._enter, m, walk)
        return walk.outputs if failure is None else [self._failed(p, m, failure, clock)]

    def _enter(self, m: Message, walk: Walk) -> None:
        self.stage.walk(m.data, m.headers.get(subjects.CONTENT_TYPE), walk)

    def _origin(self, m: Message) -> Origin:
        h = m.headers
        id = message_id(m, self.created)
        if len(h) == 1 and subjects.MESSAGE_ID in h:  # the usual case: the event has no headers of ours
            return Origin(id, m.subject, id, None, None, None, m.time, m.sequence)
        at = event_time(m).timestamp() if subjects.TIME in h else m.time
        run, cause = h.get(subjects.RUN) or id, cause_of(h)
        key, session, trace = h.get(subjects.KEY), h.get(subjects.SESSION), h.get(subjects.TRACEPARENT)
        own = {k: v for k, v in h.items() if k not in _READ_HERE and not k.startswith(subjects.FROM_SERVER)}
        return Origin(id, m.subject, run, cause, key, session, at, m.sequence, trace, own or None)

    def _failed(self, p: Partition, m: Message, failure: Failure, clock: float) -> Output:
        node, topology = self.stage.source.name, self.stage.graph.name
        content_type = m.headers.get(subjects.CONTENT_TYPE) or codecs.JSON
        work = source_work(self._walk.origin, topology, node, m.data, content_type)
        if isinstance(failure.error, RetryLater):
            return run_again(work, node, failure.error.retry_after or 1.0, p.reply, clock)
        self.counters.dead_letters += 1
        _log.warning("dead letter", node=failure.node, why=failure.error.message[:500], run=work.origin.get("run"))
        return letter(
            failure,
            app=self.app,
            topology=topology,
            work=work,
            entry=node,
            reply=p.reply,
            clock=clock,
            limit=self.limit,
            stored=(self.stream, m.sequence),
            headers=m.headers,
        )
