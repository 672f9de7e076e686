"""An evaluation: each recorded run is done again with a candidate, and both ends are scored.

What has not changed is read back from the records; only calls whose requests changed are made, and what hangs on them. No sink
is written.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any, Final, cast

from dspex.bus.errors import BusError, ConfigError, Divergence, DspexError, Saturated, TopologyError
from dspex.bus.records import CallRecord, CallRequest, Usage
from dspex.engine.again.code import builds_now
from dspex.engine.again.making import made
from dspex.engine.again.repeat import Repeated, repeat
from dspex.engine.again.state import file_of
from dspex.engine.client.client import Client
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.runs.diff import NOTHING
from dspex.engine.client.runs.export import RunFile
from dspex.engine.client.runs.judged.evaluation import EvalPolicy, Evaluation, JudgedRun, earlier_scores
from dspex.engine.client.runs.then.builds import others
from dspex.engine.graph.graph import Graph
from dspex.engine.judge.metric import Judged, MetricFailed

AT_ONCE: Final = 4  # runs that are done again together
LIMIT: Final = 1000
_ENDS: Final = (BusError, Saturated, TopologyError, ConfigError)  # what is no fault of a run: the others would have it, too


@dataclass(frozen=True)
class Terms:
    """What an evaluation is to do.

    Attributes:
        judged: what is compared with what. policy: what the means must be.
        since: from when on runs are cases, in seconds since the epoch. said: the same as it was asked for.
        limit: so many runs at most, the latest. budget: tokens after which no call is made any more; None: no limit.
        baseline: the scores of an earlier evaluation, by run; None: those of what was recorded.
        at_once: runs that are done again together.
    """

    judged: Judged
    policy: EvalPolicy | None = None
    since: float = 0.0
    said: str = ""
    limit: int = LIMIT
    budget: int | None = None
    baseline: Mapping[str, float] | None = None
    at_once: int = AT_ONCE


@dataclass
class Bill:
    """What calls have cost. `budget`: tokens after which none is made any more."""

    client: Client
    budget: int | None = None
    called: int = 0
    usage: Usage = field(default_factory=Usage)
    spent: bool = False

    @property
    def tokens(self) -> int:
        return self.usage.input_tokens + self.usage.output_tokens

    @property
    def cost(self) -> float:
        return self.usage.cost or 0.0

    def of_run(self) -> OfRun:
        """What makes the calls of one run, and counts them."""
        return OfRun(self)


@dataclass
class OfRun:
    """What the calls of one run have cost."""

    bill: Bill
    called: int = 0
    usage: Usage = field(default_factory=Usage)

    async def make(self, pool: str, request: CallRequest) -> CallRecord:
        """Make a call. Raises Divergence where the budget is spent."""
        bill = self.bill
        if bill.budget is not None and bill.tokens >= bill.budget:
            bill.spent = True
            raise Divergence(f"the budget of {bill.budget:,} tokens is spent", node=request.node, run=request.run)
        bill.called += 1
        self.called += 1
        record = await made(bill.client.bus, bill.client.app, pool, request)
        used = Usage.read(record.usage)
        bill.usage += used
        self.usage += used
        return record

    @property
    def paid(self) -> dict[str, Any]:
        """As a case has it."""
        tokens = self.usage.input_tokens + self.usage.output_tokens
        return {"called": self.called, "tokens": tokens, "cost": self.usage.cost or 0.0}


async def evaluate(
    client: Client,
    topology: str,
    graphs: Sequence[Graph],
    terms: Terms,
    *,
    begun: Callable[[int], None] | None = None,
    told: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Judge a candidate by the recorded runs of a topology.

    Args:
        graphs: the candidate: the topology, and others that take what it sends.
        begun: hears how many runs there are. told: hears after each.

    Raises:
        ConfigError, TopologyError. BusError, and Saturated where a pool has no worker, before anything was judged; later they
        stop it. Whatever else a run cannot be judged for is said of its case.
    """
    found = Evaluation(topology, terms.judged.name, terms.said, policy=terms.policy)
    infos = await _dataset(client, topology, terms, found)
    if begun is not None:
        begun(len(infos))
    bill, cases, waiting = Bill(client, terms.budget), dict[str, JudgedRun](), list(reversed(infos))

    async def judge() -> None:
        while waiting:
            info = waiting.pop()
            try:
                cases[info.id] = await _case(client, graphs, terms, found, bill, info)
            except (BusError, Saturated) as error:
                left = [info, *reversed(waiting)]
                waiting.clear()  # the others end with the run that they are at
                if not cases:
                    raise
                found.stopped = error.message  # what was paid for is told
                cases.update((one.id, JudgedRun(one.id, None, None, error.message)) for one in left)
            except BaseException:
                waiting.clear()
                raise
            found.called, found.tokens, found.cost = bill.called, bill.tokens, bill.cost
            if told is not None:
                told(found)

    ended = await asyncio.gather(*(judge() for _ in range(max(1, terms.at_once))), return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    found.cases = [cases[info.id] for info in infos] + _gone(terms, {info.id for info in infos})
    found.stopped = f"the budget of {terms.budget:,} tokens is spent" if bill.spent else found.stopped
    return found


async def _dataset(client: Client, topology: str, terms: Terms, found: Evaluation) -> list[RunInfo]:
    """The runs that are cases, the latest first. One that a fork made is none: nobody asked that."""
    infos = list[RunInfo]()
    since = datetime.fromtimestamp(terms.since, UTC)
    runs = cast("AsyncGenerator[RunInfo]", client.runs(topology, since=since, limit=sys.maxsize))
    async with aclosing(runs) as there:
        async for info in there:
            if info.parent is not None:
                continue
            if info.status == "running":
                found.open.append(info.id)
            elif len(infos) == terms.limit:
                found.more = True
                break
            else:
                infos.append(info)
    return infos


def _gone(terms: Terms, there: Collection[str]) -> list[JudgedRun]:
    """The cases of the baseline whose runs are not found any more."""
    why = "it is in the baseline, and no run of this time any more"
    return [JudgedRun(run, score, None, why) for run, score in (terms.baseline or {}).items() if run not in there]


async def _case(
    client: Client, graphs: Sequence[Graph], terms: Terms, found: Evaluation, bill: Bill, info: RunInfo
) -> JudgedRun:
    """Do a run again, and score it."""
    mine = bill.of_run()
    before = (terms.baseline or {}).get(info.id)
    try:
        file = await file_of(client, client.run(info.id), graphs)
        again = await repeat(client, file, graphs, mode="hybrid", make=mine.make)
        found.served += again.served
        found.builds |= others(file.builds, builds_now(graphs))
        case = await scored(terms.judged, file, again)
    except _ENDS:
        raise
    except (DspexError, MetricFailed) as error:
        return JudgedRun(info.id, before, None, " ".join(str(error).split()), **mine.paid)  # a line of a table
    if terms.baseline is not None:
        case = JudgedRun(info.id, before, case.after, case.missing, case.note)
    lacks = f"begins without state: {again.without}" if again.without else ""
    note = "; ".join(filter(None, (case.note, lacks)))
    return JudgedRun(info.id, case.before, case.after, case.missing, note, **mine.paid)


async def scored(judged: Judged, file: RunFile, again: Repeated) -> JudgedRun:
    """How well a run ended, and ends with the candidate. Raises MetricFailed."""
    run, event = file.info.id, file.root.data
    if file.info.status == "cancelled":
        return JudgedRun(run, None, None, note="it was cancelled: it did not come to its end then")
    then, now = judged.outputs(file.root), judged.outputs(again.file.root)
    if again.file.info.status == "running":
        return JudgedRun(run, None, None, "with the candidate it does not come to an end")
    if judged.label is not None:
        return await _labelled(judged, run, event, then, now)
    if not then:
        if file.info.dead_letters:
            return JudgedRun(run, None, None, note="it failed then: there is nothing to compare with")
        if not now:
            return JudgedRun(run, None, None, note="it sent nothing, then and now")
    before = [await judged.pair(data, data, event) for data in then.values()]
    if gone := [name for name in then if name not in now]:
        return JudgedRun(run, fmean(before), None, f"not sent any more: {', '.join(gone)}{_why(again)}")
    after = [await judged.pair(data, now[name], event) for name, data in then.items()]
    more = [name for name in now if name not in then]
    note = f"sent besides: {', '.join(more)}{_why(again)}" if more else _why(again).strip()
    return JudgedRun(run, fmean(before) if before else 1.0, fmean([*after, *(0.0 for _ in more)]), note=note)


async def _labelled(judged: Judged, run: str, event: Any, then: Mapping[str, Any], now: Mapping[str, Any]) -> JudgedRun:
    label = event.get(judged.label, NOTHING) if isinstance(event, Mapping) else NOTHING
    if label is NOTHING:
        return JudgedRun(run, None, None, f"its event has no {judged.label}")
    sides = [[await judged.pair(label, data, event) for data in judged.labelled(side)] for side in (then, now)]
    if (then or now) and not any(sides):
        return JudgedRun(run, None, None, f"no output has a field {judged.field!r}: say which is compared (--field)")
    before, after = (fmean(scores) if scores else 0.0 for scores in sides)
    if sides[0] and not sides[1]:
        return JudgedRun(run, before, None, "what was sent then is not sent any more")
    return JudgedRun(run, before, after)


def _why(again: Repeated) -> str:
    """What became of it instead, where it failed."""
    letter = next((one for one in again.file.root if one.kind == "letter"), None)
    return f" (dead letter at {letter.node}: {(letter.error or {}).get('message', '')})" if letter is not None else ""


def terms_of(
    metric: Any,
    *,
    expected: str | None = None,
    fields: Sequence[str] = (),
    sink: str | None = None,
    policy: str | None = None,
    baseline: str | PathLike[str] | None = None,
    **more: Any,
) -> Terms:
    """What is asked for, as people write it. Raises ConfigError."""
    earlier = earlier_scores(Path(baseline)) if baseline is not None else None
    judged = Judged.of(metric, expected, tuple(fields), sink)
    return Terms(judged, EvalPolicy.read(policy) if policy is not None else None, baseline=earlier, **more)
