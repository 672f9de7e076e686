"""What a partition does with its inbox: results of its calls, deadlines that pass, and events to run again.

Everything here is a function from a message to outputs plus changes of the partition's rows; nothing is awaited, so a result
is handled whole or not at all. A result for a call that is not open is a repeat, or late, or unknown: counted and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from dspex.bus import codecs
from dspex.bus.errors import CallTimeout, DecodeError
from dspex.bus.message import Message
from dspex.bus.records import CallRecord, Work
from dspex.engine.log.state import OpenCall
from dspex.engine.runtime.compile import Stage
from dspex.engine.runtime.failure import Failure, Verdict, decide, refusal
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.settle import Counters, Landing, Poison, Settler, operator_gone
from dspex.engine.runtime.walk import Asked, Output, Walk

_log = structlog.get_logger("dspex.engine")


class Inbox:
    """The inbox of the partitions of one stage."""

    def __init__(self, stage: Stage, counters: Counters, poison: Poison, settler: Settler) -> None:
        self.stage = stage
        self._counters, self._poison, self._settler = counters, poison, settler

    def freed(self) -> list[int]:
        """Inbox sequences of results that waited for the one just handled; each is returned once."""
        return self._settler.freed()

    def take(
        self, p: Partition, message: Message, clock: float, *, due: bool = False, stored: Message | None = None
    ) -> list[Output]:
        """Handle one message.

        `due`: it was delayed, or held back for order, and its time has come. `stored`: the event that it refers to.
        """
        if self._poison and (why := self._poison.get((p.index, "inbox", message.sequence))):
            return self._refuse(p, message, clock, why)
        record = self._unpacked(message)
        if record is None:
            return []
        if record.kind == "resume":
            return self._resume(p, record, message, clock, due, stored)
        row = self._open(p, record)
        if row is None or (row.held and not due):
            self._counters.dropped += 1
            return []
        if not due:
            self._counters.results += 1
        return self._settler.settle(p, record, row, message.sequence, clock, due)

    def _refuse(self, p: Partition, message: Message, clock: float, why: str) -> list[Output]:
        """Give up a message because no bus takes what follows from it: a dead letter, and its call is closed."""
        record = self._unpacked(message)
        row = self._open(p, record) if record else None
        if record is None or (row is None and record.kind == "result"):
            return []
        if row is not None:
            self._settler.close(p, record.ordinal, row, [])
        node = row.node if row else self._settler.name(record.node)
        failure = Failure(refusal(why, node), node)
        return [self._settler.letter(p, failure, Work.unpack(record.work), node, clock, record.outputs)]

    def _unpacked(self, message: Message) -> CallRecord | None:
        try:
            return CallRecord.unpack(message.data)
        except DecodeError as e:  # it belongs to no event that could be a dead letter: only dspex writes here
            _log.error("dropped a message that is no result", subject=message.subject, why=e.message)
            self._counters.dropped += 1
            return None

    @staticmethod
    def _open(p: Partition, o: CallRecord) -> OpenCall | None:
        """The row of the call that a record answers; None where that attempt is not open."""
        row = p.state.calls.get(o.ordinal) if o.kind == "result" else None
        return row if row is not None and row.id == o.call and row.attempt == o.attempt else None

    # -- deadlines ------------------------------------------------------------------------------------------------
    def expire(self, p: Partition, ordinal: int, row: OpenCall, work: Work | None, clock: float) -> list[Output]:
        """The deadline of an open call has passed and no result came. `work`: None where it is not stored any more."""
        call = self._settler.call(row.node)
        error = CallTimeout(f"{row.node} had no answer within its deadline, after {row.attempt} attempt(s)", node=row.node)
        work = work or Work(
            row.id, ordinal, row.attempt, self.stage.graph.name, row.node, p.reply, {}, {}, origin={"run": row.run}
        )
        if call is None:
            return self._settler.gone(p, CallRecord(row.id, ordinal, row.attempt, row.node, work=work.pack()), row, clock)
        if self._poison and (why := self._poison.get((p.index, "clock", -1 - ordinal))):  # of what its fallback emits
            failure = Failure(refusal(why, row.node), row.node)
            return self._settler.spent(p, ordinal, row, work, call, failure, Verdict("dead"), clock)
        verdict = decide(error, row.tries, call, row.id, left=0.0)
        if verdict.what == "fallback" and p.state.first_open(row.node, row.key) not in (None, ordinal):
            return []  # an earlier call of its key comes first, though its deadline is later (clocks differ): wait for it
        return self._settler.spent(p, ordinal, row, work, call, Failure(error, row.node), verdict, clock)

    # -- events that are run again ----------------------------------------------------------------------------------
    def _resume(
        self, p: Partition, o: CallRecord, message: Message, clock: float, due: bool, stored: Message | None
    ) -> list[Output]:
        if o.due > clock and not due:
            p.delay(message.sequence, o.due)
            return []
        node = self._settler.name(o.node)
        work = Work.unpack(o.work)
        work = replace(work, attempt=work.attempt + 1, data=stored.data if stored else work.data)
        if o.outputs is not None:
            failure = self._settler.land(node, work, o.outputs, clock)
        elif node in self.stage.calls:
            failure = self._settler.begin(node, work, {}, clock, self._ask_anew(node, work))
        elif node == self.stage.source.name:
            failure = self._settler.begin(node, work, {}, clock, self._enter)
        else:
            failure = Failure(operator_gone(node), node)
        return self._settler.landed(p, failure, work, node, o.outputs, clock)

    def _ask_anew(self, node: str, work: Work) -> Callable[[Landing, Walk], None]:
        call = self.stage.calls[node].call

        def step(_: Landing, walk: Walk) -> None:
            data = codecs.decode(work.data, work.content_type)
            walk.outputs.append(
                Asked(
                    node,
                    call,
                    work.call,
                    walk.origin,
                    call.inputs(data),
                    work.data,
                    work.content_type,
                    walk.clock,
                    work.attempt,
                )
            )

        return step

    def _enter(self, landing: Landing, walk: Walk) -> None:
        self.stage.walk(landing.work.data, landing.work.content_type, walk)
