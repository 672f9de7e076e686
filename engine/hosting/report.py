"""What an engine tells of its stages, as plain data."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from math import inf
from typing import Any, Final

import orjson

from dspex.bus.message import oldest_of
from dspex.engine.graph.boundary import Gate
from dspex.engine.graph.nodes import NativeNode
from dspex.engine.hosting.operators import Operators
from dspex.engine.runtime.inputs.upto import REST
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.stage import StageRunner
from dspex.engine.runtime.watermarks.holding import held

LOOK: Final = 5.0  # seconds between two looks at who holds watermarks


class Reports:
    """What the heartbeats of an engine tell of its stages, with the partitions of each as JSON.

    There may be thousands of them, and most have nothing to do. So those of a stage in which nothing has moved since the
    heartbeat before are not encoded again, and who holds watermarks is looked for less often.
    """

    def __init__(self, operators: Operators) -> None:
        self._operators = operators
        self._encoded: dict[StageRunner, tuple[object, orjson.Fragment]] = {}
        self._held: dict[StageRunner, dict[str, float]] = {}
        self._looked = -inf  # when that was, on the loop's clock

    def of(self, runners: list[StageRunner]) -> list[dict[str, Any]]:
        """Of all stages, in their order."""
        self._encoded = {r: self._encoded[r] for r in runners if r in self._encoded}
        if (now := asyncio.get_running_loop().time()) - self._looked >= LOOK:
            self._held, self._looked = {r: held(r) for r in runners}, now
        rows = [described(r, self._operators, self._held.get(r, {})) for r in runners]
        return [{**row, "partitions": self._partitions(r)} for r, row in zip(runners, rows)]

    def _partitions(self, r: StageRunner) -> orjson.Fragment:
        moved, (before, encoded) = _moved(r), self._encoded.get(r, (None, None))
        if encoded is None or moved is None or moved != before:
            encoded = orjson.Fragment(orjson.dumps(_partitions(r)))
            self._encoded[r] = moved, encoded
        return encoded


def _moved(r: StageRunner) -> object:
    """Something else once what is said of the partitions may be another thing; None while it changes without a commit."""
    pump, mine = r.pumps[_input(r)], r.partitions.values()
    if any(not p.settled.is_set() or pump.catches_up(p) for p in mine):
        return None
    return pump.at, [(p.index, p.log.epoch, p.committed) for p in mine]


def described(r: StageRunner, operators: Operators, holds: Mapping[str, float] | None = None) -> dict[str, Any]:
    """What an engine says of a stage; see `StageReport`. `holds`: those that are known, for what lacks the partitions."""
    return {
        "topology": r.topology,
        "stage": r.stage.id,
        "source": r.stage.name,
        "stopped": r.stopped or r.waits,
        "paused": r.paused,
        "mark": r.source.highest if r.source is not None else None,
        "waits_for": r.source.waits_for if r.source is not None else {},
        "holds": held(r) if holds is None else holds,
        **({"rest": stop} if r.source is not None and (stop := r.source.upto.of(REST)) is not None else {}),
        "events": r.counters["event"],
        "rate": operators.rate((r.topology, r.stage.id), r.counters["event"]),
        "records": r.counters["record"],
        "dropped": r.counters["dropped"],
        "retries": r.counters["retry"],
        "fallbacks": r.counters["fallback"],
        "dead_letters": r.counters["dead_letter"],
        "unreadable": r.counters["unreadable"],
        "unsigned": r.counters["unsigned"],
        **({"left_out": _left_out(r)} if r.stage.graph.lanes else {}),
        "partitions": _partitions(r) if holds is None else [],
    }


def _left_out(r: StageRunner) -> int:
    """What came about before the boundary of a lane, and went no further."""
    nodes = (r.stage.graph.nodes.get(name) for name in r.stage.clocks)
    return sum(n.build.left_out for n in nodes if isinstance(n, NativeNode) and isinstance(n.build, Gate))


def _input(r: StageRunner) -> str:
    """What its events come from."""
    return "source" if r.source is not None else "events"


def _partitions(r: StageRunner) -> list[dict[str, object]]:
    return [_of_partition(r, p) for p in r.partitions.values()]


def _of_partition(r: StageRunner, p: Partition) -> dict[str, object]:
    """See `PartitionReport`. What waits is said only where something waits."""
    calls, put_off = p.tables.calls.rows, p.tables.timers.put_off
    found: dict[str, object] = {
        "index": p.index,
        "epoch": p.log.epoch,
        "source": r.pumps[_input(r)].stored(p),
        "records": p.tables.position("records").sequence,
        "open_calls": len(calls),
    }
    if calls or put_off:
        found["calls"] = Counter(call.pool for call in calls.values())
        found |= {"put_off": put_off, "full": p.full}
        found["waits_since"] = oldest_of(call.id for call in calls.values()) if calls else 0.0
    approves = [name for name in r.stage.states if r.stage.graph.nodes[name].op == "approve"]
    if waiting := {name: n for name in approves if (n := len(p.tables.keyed.subs(name, "")))}:
        found["approvals"] = waiting
    return found
