"""What a partition does with its inbox: results of its calls, and events to run again.

Everything here is a function from a message to outputs plus changes of the partition's rows; nothing is awaited, so a result
is handled whole or not at all. A result for a call that is not open is a repeat, or late, or unknown: counted and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import structlog

from dspex.bus import codecs
from dspex.bus.errors import CallTimeout, DecodeError, InvalidOutput, RetryLater, TopologyError, from_dict
from dspex.bus.event import Message
from dspex.bus.wire import Origin, Outcome, Work
from dspex.engine.compile import Stage
from dspex.engine.failure import Failure, Verdict, decide, guard, letter, run_again
from dspex.engine.graph import Call
from dspex.engine.partition import Partition
from dspex.engine.state import Row
from dspex.engine.walk import Again, Opened, Output, Walk, origin_after

_log = structlog.get_logger("dspex.engine")


class _Landing(NamedTuple):
    """What a walk behind a call starts from."""

    node: str
    work: Work
    outputs: Mapping[str, Any]


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

    def __init__(self, app: str, stage: Stage, limit: int, counters: Counters) -> None:
        self.app = app
        self.stage = stage
        self.topology = stage.graph.name
        self.limit = limit
        self.counters = counters
        self.walk = Walk(self.topology, limit)
        self._freed: list[int] = []
        self._new_names = {old: new for new, old in stage.graph.renamed_from.items()}

    def take(self, p: Partition, message: Message, clock: float, *, due: bool = False) -> list[Output]:
        """Handle one message. `due`: it was delayed, or held back for order, and its time has come."""
        try:
            outcome = Outcome.unpack(message.data)
        except DecodeError as e:  # not an event of anybody's: only dspex writes here
            _log.error("dropped a message that is no result", subject=message.subject, why=e.message)
            self.counters.dropped += 1
            return []
        if outcome.kind == "resume":
            return self._resume(p, outcome, message, clock, due)
        row = p.state.calls.get(outcome.ordinal)
        if row is None or row.id != outcome.call or outcome.attempt != row.attempt or (row.held and not due):
            self.counters.dropped += 1
            return []
        if not due:
            self.counters.results += 1
        return self._settle(p, outcome, row, message.sequence, clock, due)

    def freed(self) -> list[int]:
        """Inbox sequences of results that waited for the one just handled; asked once."""
        freed, self._freed = self._freed, []
        return freed

    # -- results --------------------------------------------------------------------------------------------------
    def _settle(self, p: Partition, o: Outcome, row: Row, sequence: int, clock: float, due: bool) -> list[Output]:
        row = row._replace(node=self._name(row.node))
        call = self._call(row.node)
        if call is None:
            return self._gone(p, o, row, clock)
        if o.error is None and o.outputs is not None:
            if self._must_wait(p, call, row, o.ordinal, sequence):
                return []
            return self._answered(p, o, row, call, o.outputs, clock)
        error = from_dict(o.error or {"type": "ProgramError", "message": "the worker sent neither outputs nor an error"})
        verdict = decide(error, o.attempt, call, o.call)
        if verdict.what == "retry":
            self.counters.retries += 1
            if verdict.after > 0 and not due:
                p.delay(sequence, clock + verdict.after)
                return []
            return [self._again(o.ordinal, Work.unpack(o.work), call)]
        if verdict.what == "fallback" and self._must_wait(p, call, row, o.ordinal, sequence):
            return []
        trace = str((o.error or {}).get("traceback", ""))
        return self._spent(p, o.ordinal, row, Work.unpack(o.work), call, Failure(error, row.node, trace), verdict, clock)

    def _answered(
        self, p: Partition, o: Outcome, row: Row, call: Call, outputs: Mapping[str, Any], clock: float
    ) -> list[Output]:
        work = Work.unpack(o.work)
        failure = self._land(row.node, work, outputs, clock)
        if failure is None:
            return self._close(p, o.ordinal, row, call, self.walk.outputs)
        if isinstance(failure.error, InvalidOutput) and decide(failure.error, o.attempt, call, o.call).what == "retry":
            self.counters.retries += 1
            return [self._again(o.ordinal, work, call)]
        if isinstance(failure.error, RetryLater):
            again = run_again(work, row.node, failure.error.retry_after or 1.0, p.reply, clock, outputs)
            return self._close(p, o.ordinal, row, call, [again])
        verdict = Verdict("skip" if call.on_error == "skip" and isinstance(failure.error, InvalidOutput) else "dead")
        return self._spent(p, o.ordinal, row, work, call, failure, verdict, clock, outputs)

    def _spent(
        self,
        p: Partition,
        ordinal: int,
        row: Row,
        work: Work,
        call: Call,
        failure: Failure,
        verdict: Verdict,
        clock: float,
        outputs: Mapping[str, Any] | None = None,
    ) -> list[Output]:
        if verdict.what == "fallback":
            failed = self._fall_back(row.node, work, call, clock)
            if failed is None:
                return self._close(p, ordinal, row, call, self.walk.outputs)
            failure = failed
        if verdict.what == "skip":
            return self._close(p, ordinal, row, call, [])
        return self._close(p, ordinal, row, call, [self._letter(p, failure, work, row.node, clock, outputs)])

    def _fall_back(self, node: str, work: Work, call: Call, clock: float) -> Failure | None:
        fallback = call.fallback
        assert fallback is not None

        def stand_in(landing: _Landing, walk: Walk) -> None:
            data = codecs.decode(work.data, work.content_type)
            self._go_on(landing._replace(outputs=fallback(data)), walk)

        return self._begin(node, work, {}, clock, stand_in)

    def _close(self, p: Partition, ordinal: int, row: Row, call: Call, outputs: list[Output]) -> list[Output]:
        p.close(ordinal)
        if call.order == "key":
            following = p.state.first_open(row.node, row.key)
            held = p.state.calls[following].held if following is not None else 0
            if held:
                self._freed.append(held)
        return outputs

    def _must_wait(self, p: Partition, call: Call, row: Row, ordinal: int, sequence: int) -> bool:
        """Whether an earlier call of the key is still open; then this result is held where it is stored."""
        if call.order != "key" or p.state.first_open(row.node, row.key) == ordinal:
            return False
        p.put(ordinal, row._replace(held=sequence))
        return True

    def _again(self, ordinal: int, work: Work, call: Call) -> Again:
        return Again(ordinal, replace(work, attempt=work.attempt + 1), call.pool)

    def _gone(self, p: Partition, o: Outcome, row: Row, clock: float) -> list[Output]:
        """The operator is not in the topology any more."""
        p.close(o.ordinal)
        error = TopologyError(f"operator {row.node} is gone", code="DX232", fix="bring it back, or drop its letters")
        return [self._letter(p, Failure(error, row.node), Work.unpack(o.work), row.node, clock, o.outputs)]

    # -- deadlines ------------------------------------------------------------------------------------------------
    def expire(self, p: Partition, ordinal: int, row: Row, work: Work | None, clock: float) -> list[Output]:
        """The deadline of an open call has passed and no result came."""
        row = row._replace(node=self._name(row.node))
        call = self._call(row.node)
        error = CallTimeout(f"{row.node} had no answer within its deadline, after {row.attempt} attempt(s)", node=row.node)
        work = work or Work(row.id, ordinal, row.attempt, self.topology, row.node, p.reply, {}, {}, origin={"run": row.run})
        if call is None:
            return self._gone(p, Outcome(row.id, ordinal, row.attempt, row.node, work=work.pack()), row, clock)
        verdict = decide(error, row.attempt, call, row.id, expired=True)
        return self._spent(p, ordinal, row, work, call, Failure(error, row.node), verdict, clock)

    # -- events that are run again --------------------------------------------------------------------------------
    def _resume(self, p: Partition, o: Outcome, message: Message, clock: float, due: bool) -> list[Output]:
        if o.due > clock and not due:
            p.delay(message.sequence, o.due)
            return []
        work, node = Work.unpack(o.work), self._name(o.node)
        if o.outputs is not None:
            failure = self._land(node, work, o.outputs, clock)
        elif node in self.stage.calls:
            failure = self._begin(node, work, {}, clock, self._ask_anew(node, work))
        else:
            failure = self._begin(node, work, {}, clock, self._enter)
        if failure is None:
            return self.walk.outputs
        if isinstance(failure.error, RetryLater):
            return [run_again(work, node, failure.error.retry_after or 1.0, p.reply, clock, o.outputs)]
        return [self._letter(p, failure, work, node, clock, o.outputs)]

    def _ask_anew(self, node: str, work: Work) -> Callable[[_Landing, Walk], None]:
        call = self.stage.calls[node].call
        assert call is not None

        def step(_: _Landing, walk: Walk) -> None:
            data = codecs.decode(work.data, work.content_type)
            walk.outputs.append(
                Opened(
                    node,
                    call,
                    work.call,
                    walk.origin,
                    call.inputs(data),
                    work.data,
                    work.content_type,
                    walk.clock,
                    work.attempt + 1,
                )
            )

        return step

    def _enter(self, landing: _Landing, walk: Walk) -> None:
        data = codecs.decode(landing.work.data, landing.work.content_type)
        accept = self.stage.settings.accept
        walk.node = self.stage.source.name
        self.stage.enter(accept(data) if accept else data, walk)

    # -- walks ----------------------------------------------------------------------------------------------------
    def _land(self, node: str, work: Work, outputs: Mapping[str, Any], clock: float) -> Failure | None:
        return self._begin(node, work, outputs, clock, self._go_on)

    def _go_on(self, landing: _Landing, walk: Walk) -> None:
        node, work, outputs = landing
        call = self.stage.calls[node].call
        assert call is not None
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
        return self._new_names.get(node, node)

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
        )
