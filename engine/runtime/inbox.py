"""What a partition does with its inbox: results of its calls, and events to run again.

Everything here is a function from a message to outputs plus changes of the partition's rows; nothing is awaited, so a result
is handled whole or not at all. A result for a call that is not open is a repeat, or late, or unknown: counted and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple, TypeAlias

import structlog

from dspex.bus import codecs
from dspex.bus.errors import CallTimeout, DecodeError, DspexError, InvalidOutput, RetryLater, TopologyError, from_dict
from dspex.bus.message import Message
from dspex.bus.records import CallRecord, Origin, Work
from dspex.engine.graph.nodes import Call
from dspex.engine.log.state import OpenCall
from dspex.engine.runtime.compile import Stage
from dspex.engine.runtime.failure import Failure, Verdict, decide, guard, letter, refusal, run_again
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.walk import Asked, Output, Reattempt, Walk, origin_after

_log = structlog.get_logger("dspex.engine")


Poison: TypeAlias = dict[tuple[int, str, int], str]
"""(partition, "source" or "inbox", sequence), or (partition, "clock", -1 - ordinal) → why the server refuses what follows."""


class _Landing(NamedTuple):
    """What a walk behind a call starts from."""

    node: str
    work: Work
    outputs: Mapping[str, Any]


def _gone(node: str) -> TopologyError:
    return TopologyError(f"operator {node} is gone", code="DX232", fix="bring it back, or drop its letters")


@dataclass
class Counters:
    """What a stage did since it started; for status and tests."""

    events: int = 0
    results: int = 0
    dropped: int = 0
    retries: int = 0
    dead_letters: int = 0


class Inbox:
    """The inbox of the partitions of one stage."""

    def __init__(self, app: str, stage: Stage, stream: str, limit: int, counters: Counters, poison: Poison) -> None:
        self.app = app
        self.stage = stage
        self.stream = stream  # of its source
        self.topology = stage.graph.name
        self.limit = limit
        self.counters = counters
        self.walk = Walk(self.topology, limit)
        self.poison = poison
        self._freed: list[int] = []
        self.new_names = {old: new for new, old in stage.graph.renamed_from.items()}

    def take(
        self, p: Partition, message: Message, clock: float, *, due: bool = False, stored: Message | None = None
    ) -> list[Output]:
        """Handle one message.

        `due`: it was delayed, or held back for order, and its time has come. `stored`: the event that it refers to.
        """
        if self.poison and (why := self.poison.get((p.index, "inbox", message.sequence))):
            return self._refuse(p, message, clock, why)
        outcome = self._unpacked(message)
        if outcome is None:
            return []
        if outcome.kind == "resume":
            return self._resume(p, outcome, message, clock, due, stored)
        row = self._open(p, outcome)
        if row is None or (row.held and not due):
            self.counters.dropped += 1
            return []
        if not due:
            self.counters.results += 1
        return self._settle(p, outcome, row, message.sequence, clock, due)

    def _refuse(self, p: Partition, message: Message, clock: float, why: str) -> list[Output]:
        """Give up a message because no bus takes what follows from it: a dead letter, and its call is closed."""
        outcome = self._unpacked(message)
        row = self._open(p, outcome) if outcome else None
        if outcome is None or (row is None and outcome.kind == "result"):
            return []
        if row is not None:
            self._close(p, outcome.ordinal, row, [])
        node = row.node if row else self._name(outcome.node)
        failure = Failure(refusal(why, node), node)
        return [self._letter(p, failure, Work.unpack(outcome.work), node, clock, outcome.outputs)]

    def _unpacked(self, message: Message) -> CallRecord | None:
        try:
            return CallRecord.unpack(message.data)
        except DecodeError as e:  # not an event of anybody's: only dspex writes here
            _log.error("dropped a message that is no result", subject=message.subject, why=e.message)
            self.counters.dropped += 1
            return None

    @staticmethod
    def _open(p: Partition, o: CallRecord) -> OpenCall | None:
        """The row of the call that an outcome answers; None where that attempt is not open."""
        row = p.state.calls.get(o.ordinal) if o.kind == "result" else None
        return row if row is not None and row.id == o.call and row.attempt == o.attempt else None

    def freed(self) -> list[int]:
        """Inbox sequences of results that waited for the one just handled; asked once."""
        freed, self._freed = self._freed, []
        return freed

    # -- results --------------------------------------------------------------------------------------------------
    def _settle(self, p: Partition, o: CallRecord, row: OpenCall, sequence: int, clock: float, due: bool) -> list[Output]:
        call = self._call(row.node)
        if call is None:
            return self._gone(p, o, row, clock)
        if o.error is None and o.outputs is not None:
            if self._must_wait(p, call, row, o.ordinal, sequence):
                return []
            return self._answered(p, o, row, call, o.outputs, clock)
        error = from_dict(o.error or {"type": "ProgramError", "message": "the worker sent neither outputs nor an error"})
        waited = due and not row.held  # for its next attempt, which was before the deadline when that was decided
        work = Work.unpack(o.work)
        left = inf if waited else row.deadline - clock
        verdict = decide(error, row.tries, call, o.call, left=left, invalid=work.invalid)
        if verdict.what == "retry":
            if verdict.after > 0 and not waited:
                p.delay(sequence, clock + verdict.after)
                return []
            return [self._again(o.ordinal, work, call, error)]
        if verdict.what == "fallback" and self._must_wait(p, call, row, o.ordinal, sequence):
            return []
        trace = str((o.error or {}).get("traceback", ""))
        return self._spent(p, o.ordinal, row, work, call, Failure(error, row.node, trace), verdict, clock)

    def _answered(
        self, p: Partition, o: CallRecord, row: OpenCall, call: Call, outputs: Mapping[str, Any], clock: float
    ) -> list[Output]:
        work = Work.unpack(o.work)
        failure = self._land(row.node, work, outputs, clock)
        if failure is None or not isinstance(failure.error, InvalidOutput):
            return self._close(p, o.ordinal, row, self._landed(p, failure, work, row.node, outputs, clock))
        verdict = decide(failure.error, row.tries, call, o.call, left=row.deadline - clock, invalid=work.invalid)
        if verdict.what == "retry":
            return [self._again(o.ordinal, work, call, failure.error)]
        return self._spent(p, o.ordinal, row, work, call, failure, verdict, clock, outputs)

    def _landed(
        self, p: Partition, failure: Failure | None, work: Work, node: str, outputs: Mapping[str, Any] | None, clock: float
    ) -> list[Output]:
        """What becomes of an event that went on from `node`: what it emitted, or the same again later, or a dead letter."""
        if failure is None:
            return self.walk.outputs
        if isinstance(failure.error, RetryLater):
            return [run_again(work, node, failure.error.retry_after or 1.0, p.reply, clock, outputs)]
        return [self._letter(p, failure, work, node, clock, outputs)]

    def _spent(
        self,
        p: Partition,
        ordinal: int,
        row: OpenCall,
        work: Work,
        call: Call,
        failure: Failure,
        verdict: Verdict,
        clock: float,
        outputs: Mapping[str, Any] | None = None,
    ) -> list[Output]:
        if verdict.what == "fallback":
            return self._close(p, ordinal, row, self._fall_back(p, row.node, work, call, clock))
        if verdict.what == "skip":
            return self._close(p, ordinal, row, [])
        return self._close(p, ordinal, row, [self._letter(p, failure, work, row.node, clock, outputs)])

    def _fall_back(self, p: Partition, node: str, work: Work, call: Call, clock: float) -> list[Output]:
        fallback, outputs = call.fallback, dict[str, Any]()
        assert fallback is not None

        def stand_in(landing: _Landing, walk: Walk) -> None:
            outputs.update(fallback(codecs.decode(work.data, work.content_type)))

        failure = self._begin(node, work, {}, clock, stand_in)
        if failure is not None:
            return [self._letter(p, failure, work, node, clock)]
        return self._landed(p, self._land(node, work, outputs, clock), work, node, outputs, clock)

    def _close(self, p: Partition, ordinal: int, row: OpenCall, outputs: list[Output]) -> list[Output]:
        p.close(ordinal)
        following = p.state.first_open(row.node, row.key)  # None where the order of results does not matter
        held = p.state.calls[following].held if following is not None else 0
        if held:
            self._freed.append(held)
        return outputs

    def _must_wait(self, p: Partition, call: Call, row: OpenCall, ordinal: int, sequence: int) -> bool:
        """Whether an earlier call of the key is still open; then this result is held where it is stored."""
        if call.order != "key" or p.state.first_open(row.node, row.key) == ordinal:
            return False
        p.put(ordinal, row._replace(held=sequence))
        return True

    def _again(self, ordinal: int, work: Work, call: Call, error: DspexError) -> Reattempt:
        self.counters.retries += 1
        invalid = work.invalid + isinstance(error, InvalidOutput)
        return Reattempt(ordinal, replace(work, attempt=work.attempt + 1, invalid=invalid), call.pool)

    def _gone(self, p: Partition, o: CallRecord, row: OpenCall, clock: float) -> list[Output]:
        """The operator is not in the topology any more."""
        p.close(o.ordinal)
        return [self._letter(p, Failure(_gone(row.node), row.node), Work.unpack(o.work), row.node, clock, o.outputs)]

    # -- deadlines ------------------------------------------------------------------------------------------------
    def expire(
        self, p: Partition, ordinal: int, row: OpenCall, work: Work | None, clock: float, refused: str = ""
    ) -> list[Output]:
        """The deadline of an open call has passed and no result came. `refused`: why no bus takes what its fallback emits."""
        call = self._call(row.node)
        error = CallTimeout(f"{row.node} had no answer within its deadline, after {row.attempt} attempt(s)", node=row.node)
        work = work or Work(row.id, ordinal, row.attempt, self.topology, row.node, p.reply, {}, {}, origin={"run": row.run})
        if call is None:
            return self._gone(p, CallRecord(row.id, ordinal, row.attempt, row.node, work=work.pack()), row, clock)
        if self.poison and (why := self.poison.get((p.index, "clock", -1 - ordinal))):  # of what its fallback emits
            failure = Failure(refusal(why, row.node), row.node)
            return self._spent(p, ordinal, row, work, call, failure, Verdict("dead"), clock)
        verdict = decide(error, row.tries, call, row.id, left=0.0)
        if verdict.what == "fallback" and p.state.first_open(row.node, row.key) not in (None, ordinal):
            return []  # an earlier call of its key comes first, though its deadline is later (clocks differ): looked at again
        return self._spent(p, ordinal, row, work, call, Failure(error, row.node), verdict, clock)

    # -- events that are run again --------------------------------------------------------------------------------
    def _resume(
        self, p: Partition, o: CallRecord, message: Message, clock: float, due: bool, stored: Message | None
    ) -> list[Output]:
        if o.due > clock and not due:
            p.delay(message.sequence, o.due)
            return []
        node = self._name(o.node)
        work = Work.unpack(o.work)
        work = replace(work, attempt=work.attempt + 1, data=stored.data if stored else work.data)
        if o.outputs is not None:
            failure = self._land(node, work, o.outputs, clock)
        elif node in self.stage.calls:
            failure = self._begin(node, work, {}, clock, self._ask_anew(node, work))
        elif node == self.stage.source.name:
            failure = self._begin(node, work, {}, clock, self._enter)
        else:
            failure = Failure(_gone(node), node)
        return self._landed(p, failure, work, node, o.outputs, clock)

    def _ask_anew(self, node: str, work: Work) -> Callable[[_Landing, Walk], None]:
        call = self.stage.calls[node].call

        def step(_: _Landing, walk: Walk) -> None:
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

    def _enter(self, landing: _Landing, walk: Any) -> None:
        self.stage.walk(landing.work.data, landing.work.content_type, walk)

    # -- walks ----------------------------------------------------------------------------------------------------
    def _land(self, node: str, work: Work, outputs: Mapping[str, Any], clock: float) -> Failure | None:
        return self._begin(node, work, outputs, clock, self._go_on)

    def _go_on(self, landing: _Landing, walk: Any) -> None:
        node, work, outputs = landing
        call = self.stage.calls[node].call
        data = call.accept(codecs.decode(work.data, work.content_type), outputs)
        walk.origin = origin_after(work.call, walk.origin)
        self.stage.after[node](data, walk)

    def _begin(
        self, node: str, work: Work, outputs: Mapping[str, Any], clock: float, step: Callable[[_Landing, Walk], None]
    ) -> Failure | None:
        self.walk.begin(Origin(**work.origin), clock)
        self.walk.node = node
        return guard(step, _Landing(node, work, outputs), self.walk)

    def _call(self, node: str) -> Call | None:
        found = self.stage.calls.get(node)
        return found.call if found else None

    def _name(self, node: str) -> str:
        """What an operator is called now (`renamed_from`)."""
        return self.new_names.get(node, node)

    def _letter(
        self,
        p: Partition,
        failure: Failure,
        work: Work,
        entry: str,
        clock: float,
        outputs: Mapping[str, Any] | None = None,
    ) -> Output:
        self.counters.dead_letters += 1
        _log.warning("dead letter", node=failure.node, why=failure.error.message[:500], run=work.origin.get("run"))
        if isinstance(failure.error, InvalidOutput):  # a redrive must ask again: these outputs would fail again
            outputs = None
        return letter(
            failure,
            app=self.app,
            topology=self.topology,
            work=work,
            entry=entry,
            reply=p.reply,
            clock=clock,
            limit=self.limit,
            outputs=outputs,
            stored=(self.stream, work.origin.get("sequence", 0)) if entry == self.stage.source.name else None,
        )
