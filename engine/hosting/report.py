"""What an engine tells of its stages, as plain data."""

from __future__ import annotations

from collections import Counter

from dspex.bus.message import oldest_of
from dspex.engine.hosting.operators import Operators
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.stage import StageRunner


def described(r: StageRunner, operators: Operators) -> dict[str, object]:
    """What an engine says of a stage with each heartbeat; see `StageReport`."""
    return {
        "topology": r.topology,
        "stage": r.stage.id,
        "source": r.stage.name,
        "stopped": r.stopped or r.waits,
        "paused": r.paused,
        "mark": r.source.highest if r.source is not None else None,
        "events": r.counters["event"],
        "rate": operators.rate((r.topology, r.stage.id), r.counters["event"]),
        "records": r.counters["record"],
        "dropped": r.counters["dropped"],
        "retries": r.counters["retry"],
        "fallbacks": r.counters["fallback"],
        "dead_letters": r.counters["dead_letter"],
        "unreadable": r.counters["unreadable"],
        "unsigned": r.counters["unsigned"],
        "partitions": [_of_partition(r, p) for p in r.partitions.values()],
    }


def _of_partition(r: StageRunner, p: Partition) -> dict[str, object]:
    """It is made for every partition with every heartbeat, so one without open calls costs little."""
    calls = p.tables.calls.rows
    return {
        "index": p.index,
        "epoch": p.log.epoch,
        "source": r.pumps["source" if r.source is not None else "events"].stored(p),
        "records": p.tables.position("records").sequence,
        "open_calls": len(calls),
        "calls": Counter(call.pool for call in calls.values()) if calls else {},
        "put_off": p.tables.timers.put_off,
        "full": p.full,
        "waits_since": oldest_of(call.id for call in calls.values()) if calls else 0.0,
    }
