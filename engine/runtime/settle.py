"""What becomes of a call whose answer, error or deadline has come: it goes on, is asked again, falls back, or is a dead letter.

Nothing is awaited here, so a result is handled whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple, TypeAlias

import structlog

from dspex.bus import codecs
from dspex.bus.errors import DspexError, InvalidOutput, RetryLater, TopologyError, from_dict
from dspex.bus.records import CallRecord, Origin, Work
from dspex.engine.graph.nodes import Call
from dspex.engine.log.state import OpenCall
from dspex.engine.runtime.compile import Stage
from dspex.engine.runtime.failure import Failure, Verdict, decide, guard, letter, run_again
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.walk import Output, Reattempt, Walk, origin_after

_log = structlog.get_logger("dspex.engine")


Poison: TypeAlias = dict[tuple[int, str, int], str]
"""(partition, "source" or "inbox", sequence), or (partition, "clock", -1 - ordinal) → why the server refuses what follows."""


class Landing(NamedTuple):
    """What a walk behind a call starts from."""

    node: str
    work: Work
    outputs: Mapping[str, object]


def operator_gone(node: str) -> TopologyError:
    """The error of an event that would go on at an operator that the topology no longer has."""
    return TopologyError(f"operator {node} is gone", code="DX232", fix="bring it back, or drop its letters")


@dataclass
class Counters:
    """What a stage did since it started; for status and tests."""

    events: int = 0
    results: int = 0
    dropped: int = 0
    retries: int = 0
    dead_letters: int = 0


class Settler:
    """Settles the calls of the partitions of one stage."""

    def __init__(self, app: str, stage: Stage, stream: str, limit: int, counters: Counters) -> None:
        self.app = app
        self.stage = stage
        self.stream = stream  # of its source
        self.limit = limit
        self.counters = counters
        self.walk = Walk(stage.graph.name, limit)
        self.new_names = {old: new for new, old in stage.graph.renamed_from.items()}
        self._freed: list[int] = []

    def freed(self) -> list[int]:
        """Inbox sequences of results that waited for the one just handled; each is returned once."""
        freed, self._freed = self._freed, []
        return freed

    def settle(self, p: Partition, o: CallRecord, row: OpenCall, sequence: int, clock: float, due: bool) -> list[Output]:
        """The outputs of a result. `row`: its open call. `due`: it was put off until now."""
        call = self.call(row.node)
        if call is None:
            return self.gone(p, o, row, clock)
        if o.error is None and o.outputs is not None:
            if self._must_wait(p, call, row, o.ordinal, sequence):
                return []
            return self._answered(p, o, row, call, o.outputs, clock)
        error = from_dict(o.error or {"type": "ProgramError", "message": "the worker sent neither outputs nor an error"})
        waited = due and not row.held  # for its next attempt, which was scheduled before the deadline
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
        return self.spent(p, o.ordinal, row, work, call, Failure(error, row.node, trace), verdict, clock)

    def _answered(
        self, p: Partition, o: CallRecord, row: OpenCall, call: Call, outputs: Mapping[str, object], clock: float
    ) -> list[Output]:
        work = Work.unpack(o.work)
        failure = self.land(row.node, work, outputs, clock)
        if failure is None or not isinstance(failure.error, InvalidOutput):
            return self.close(p, o.ordinal, row, self.landed(p, failure, work, row.node, outputs, clock))
        verdict = decide(failure.error, row.tries, call, o.call, left=row.deadline - clock, invalid=work.invalid)
        if verdict.what == "retry":
            return [self._again(o.ordinal, work, call, failure.error)]
        return self.spent(p, o.ordinal, row, work, call, failure, verdict, clock, outputs)

    def landed(
        self, p: Partition, failure: Failure | None, work: Work, node: str, outputs: Mapping[str, object] | None, clock: float
    ) -> list[Output]:
        """What becomes of an event that went on from `node`: what it emitted, or the same again later, or a dead letter."""
        if failure is None:
            return self.walk.outputs
        if isinstance(failure.error, RetryLater):
            return [run_again(work, node, failure.error.retry_after or 1.0, p.reply, clock, outputs)]
        return [self.letter(p, failure, work, node, clock, outputs)]

    def spent(
        self,
        p: Partition,
        ordinal: int,
        row: OpenCall,
        work: Work,
        call: Call,
        failure: Failure,
        verdict: Verdict,
        clock: float,
        outputs: Mapping[str, object] | None = None,
    ) -> list[Output]:
        """Close a call that is not asked again: its fallback stands in, or it is skipped, or it is a dead letter."""
        if verdict.what == "fallback":
            return self.close(p, ordinal, row, self._fall_back(p, row.node, work, call, clock))
        if verdict.what == "skip":
            return self.close(p, ordinal, row, [])
        return self.close(p, ordinal, row, [self.letter(p, failure, work, row.node, clock, outputs)])

    def _fall_back(self, p: Partition, node: str, work: Work, call: Call, clock: float) -> list[Output]:
        fallback, outputs = call.fallback, dict[str, object]()
        assert fallback is not None

        def stand_in(landing: Landing, walk: Walk) -> None:
            outputs.update(fallback(codecs.decode(work.data, work.content_type)))

        failure = self.begin(node, work, {}, clock, stand_in)
        if failure is not None:
            return [self.letter(p, failure, work, node, clock)]
        return self.landed(p, self.land(node, work, outputs, clock), work, node, outputs, clock)

    def close(self, p: Partition, ordinal: int, row: OpenCall, outputs: list[Output]) -> list[Output]:
        """Close a call that ends with `outputs`, and free the result of its key that waits for it."""
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

    def gone(self, p: Partition, o: CallRecord, row: OpenCall, clock: float) -> list[Output]:
        """The operator is not in the topology any more."""
        p.close(o.ordinal)
        return [self.letter(p, Failure(operator_gone(row.node), row.node), Work.unpack(o.work), row.node, clock, o.outputs)]

    def land(self, node: str, work: Work, outputs: Mapping[str, object], clock: float) -> Failure | None:
        """Walk on behind a call with its outputs."""
        return self.begin(node, work, outputs, clock, self._go_on)

    def _go_on(self, landing: Landing, walk: Any) -> None:
        node, work, outputs = landing
        call = self.stage.calls[node].call
        data = call.accept(codecs.decode(work.data, work.content_type), outputs)
        walk.origin = origin_after(work.call, walk.origin)
        self.stage.after[node](data, walk)

    def begin(
        self, node: str, work: Work, outputs: Mapping[str, object], clock: float, step: Callable[[Landing, Walk], None]
    ) -> Failure | None:
        """Begin a walk at `node` with `step`; what went wrong in it, if anything."""
        self.walk.begin(Origin(**work.origin), clock)
        self.walk.node = node
        return guard(step, Landing(node, work, outputs), self.walk)

    def call(self, node: str) -> Call | None:
        """The call of an operator; None where the topology no longer has it."""
        found = self.stage.calls.get(node)
        return found.call if found else None

    def name(self, node: str) -> str:
        """What an operator is called now (`renamed_from`)."""
        return self.new_names.get(node, node)

    def letter(
        self,
        p: Partition,
        failure: Failure,
        work: Work,
        entry: str,
        clock: float,
        outputs: Mapping[str, object] | None = None,
    ) -> Output:
        """The dead letter of an event that ended in `failure`. `entry`: where a redrive goes on."""
        self.counters.dead_letters += 1
        _log.warning("dead letter", node=failure.node, why=failure.error.message[:500], run=work.origin.get("run"))
        if isinstance(failure.error, InvalidOutput):  # a redrive must ask again: these outputs would fail again
            outputs = None
        return letter(
            failure,
            app=self.app,
            topology=self.stage.graph.name,
            work=work,
            entry=entry,
            reply=p.reply,
            clock=clock,
            limit=self.limit,
            outputs=outputs,
            stored=(self.stream, work.origin.get("sequence", 0)) if entry == self.stage.source.name else None,
        )
