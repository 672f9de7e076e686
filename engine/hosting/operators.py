"""What operators did since this engine was started: counted when it is committed, and told with each heartbeat.

A fallback hides a call that fails: events go on with outputs that no model gave. So who runs the engine is told of it, and why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import median
from typing import Any, Final

from dspex.bus.records import CallRecord, NodeEvent
from dspex.bus.seldom import MINUTE, logger
from dspex.engine.graph.graph import Graph
from dspex.engine.runtime.arrival import Answered, Due, Told, about
from dspex.engine.runtime.walk.timing import NodeTimes

_log = logger("dspex.engine")
MOST: Final = 100  # operators in a heartbeat, which each engine reads of all others
_KEPT = 1000  # operators that are counted: whoever may write frames can name any
_TIMES = 128  # of the last calls, whose median is told
_WHY = 200  # characters of a reason
_WINDOW = 10.0  # seconds over which a rate is measured


@dataclass
class _Operator:
    """`events`: calls that are closed; `calls`: executions of them, of which `errors` failed. `why`: the last fallback was.

    `keyless`: events without a key, where results are released in the order of keys: those without one are one key together.
    """

    events: int = 0
    calls: int = 0
    errors: int = 0
    retries: int = 0
    fallbacks: int = 0
    dead_letters: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    keyless: int = 0
    why: str = ""
    times: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))
    said: float | None = None  # when its fallbacks were last logged
    unsaid: int = 0  # those since then

    def took(self, record: CallRecord) -> None:
        self.calls += 1
        self.times.append(_amount(record.elapsed))
        self.input_tokens += int(_amount(record.usage.get("input_tokens")))
        self.output_tokens += int(_amount(record.usage.get("output_tokens")))
        if (cost := record.usage.get("cost")) is not None:
            self.cost = (self.cost or 0.0) + _amount(cost)

    def report(self) -> dict[str, object]:
        counts = ("events", "calls", "errors", "retries", "fallbacks", "dead_letters", "input_tokens", "output_tokens")
        p50 = round(median(self.times), 4) if self.times else None
        found: dict[str, object] = {name: getattr(self, name) for name in counts}
        return found | {"p50": p50, "cost": self.cost, "why": self.why}


class Operators:
    """Counts for the topologies of an engine.

    Args:
        clock: seconds since the epoch. sealed: whether what is stored is sealed, so that no reason may quote it.
        times: what operators take; None: nobody wants to know.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        clock: Callable[[], float],
        sealed: Callable[[], bool],
        times: NodeTimes | None = None,
    ) -> None:
        self._clock, self._sealed, self.times = clock, sealed, times
        self._ordered = {
            (graph.name, n.name) for graph in graphs for n in graph.calls if n.call.order != "any" and n.call.of is None
        }
        self._found: dict[tuple[str, str], _Operator] = {key: _Operator() for key in self._ordered}
        self._events: dict[tuple[str, str], deque[tuple[float, int]]] = {}

    def __call__(self, topology: str, told: Sequence[Told]) -> None:
        """Count what was committed."""
        for what, notes, failure in told:
            answered = what.what if isinstance(what, Due) else what
            record = answered.record if isinstance(answered, Answered) else None
            node, _ = about(what)
            if "record" in notes or ("retry" in notes and record is not None):
                blamed = failure is not None and failure.node == node
                self._settled(topology, node, record, notes, failed=blamed)
                if "record" in notes and (topology, node) in self._ordered:
                    event = answered.event if isinstance(answered, Answered) else answered
                    self._of(topology, node).keyless += isinstance(event, NodeEvent) and event.origin.key is None
            if failure is not None:
                self._of(topology, failure.node).dead_letters += 1

    def _settled(self, topology: str, node: str, record: CallRecord | None, notes: Sequence[str], *, failed: bool) -> None:
        operator = self._of(topology, node)
        operator.events += "record" in notes
        operator.retries += "retry" in notes
        if record is not None:
            operator.took(record)
        operator.errors += failed or record is None or record.error is not None or "retry" in notes or "fallback" in notes
        if "fallback" in notes:
            self._fell_back(topology, node, operator, record)

    def _fell_back(self, topology: str, node: str, operator: _Operator, record: CallRecord | None) -> None:
        operator.fallbacks += 1
        operator.unsaid += 1
        operator.why = self._why(record)
        if operator.said is None or self._clock() - operator.said >= MINUTE:
            what = "a fallback stands in for what no worker gave"
            _log.warning(what, topology=topology, node=node, times=operator.unsaid, why=operator.why)
            operator.said, operator.unsaid = self._clock(), 0

    def _why(self, record: CallRecord | None) -> str:
        if record is None:
            return "CallTimeout: no answer within the deadline"
        if record.error is None:
            return "InvalidOutput"
        kind, message = (str(record.error.get(name, "")) for name in ("type", "message"))
        return kind[:_WHY] if self._sealed() else f"{kind}: {message}"[:_WHY]

    def _of(self, topology: str, node: str) -> _Operator:
        if (topology, node) not in self._found and len(self._found) >= _KEPT:
            return _Operator()
        return self._found.setdefault((topology, node), _Operator())

    def report(self) -> list[dict[str, object]]:
        """What each did, as plain data; of very many those that did most."""
        times = {one[:2]: one for one in self.times.report()} if self.times is not None else {}
        known = {**dict.fromkeys(times, _Operator()), **self._found}
        found = sorted(known.items(), key=lambda one: -(one[1].calls + one[1].dead_letters))[:MOST]
        return [
            {"topology": t, "node": n, **operator.report()}
            | ({"order": "key", "keyless": operator.keyless} if (t, n) in self._ordered else {})
            | ({"handled": taken.handled, "seconds": round(taken.seconds, 6)} if (taken := times.get((t, n))) else {})
            for (t, n), operator in sorted(found, key=lambda one: one[0])
        ]

    def rate(self, stage: tuple[str, str], events: int) -> float:
        """Events a second of a stage over the last seconds, of which so many were taken by now."""
        now, seen = self._clock(), self._events.setdefault(stage, deque())
        seen.append((now, events))
        while len(seen) > 2 and now - seen[1][0] >= _WINDOW:
            seen.popleft()
        since, before = seen[0]
        return round((events - before) / (now - since), 2) if now > since else 0.0


def _amount(value: Any) -> float:
    """A number as a record says it; 0 for what is none: workers are trusted with no more."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and 0 <= value < 1e15
    return value if usable else 0
