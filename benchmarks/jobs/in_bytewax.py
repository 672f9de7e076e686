"""The jobs `count` and `window` in Bytewax, in process: from memory to memory, and nothing is stored."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import bytewax.operators.windowing as win
import orjson
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource, run_main

from jobs.peers import event

START = datetime(1970, 1, 1, tzinfo=UTC)
BATCH = 1000  # events at once, as the others take them


def run(count: int, job: str) -> tuple[float, float]:
    """Seconds that it takes for some events, and seconds of CPU."""
    events, found = [event(i) for i in range(count)], list[Any]()
    flow = Dataflow("bench")
    read = op.map("read", op.input("in", flow, TestingSource(events, batch_size=BATCH)), orjson.loads)
    keyed = op.key_on("by_customer", read, lambda e: e["customer"])
    if job == "count":
        numbers = op.stateful_map("count", keyed, lambda state, _: ((state or 0) + 1,) * 2)
        results = op.map("result", numbers, lambda kn: orjson.dumps({"key": kn[0], "count": kn[1]}))
    else:
        clock = win.EventClock(_time, timedelta(0), now_getter=lambda: START, to_system_utc=lambda _: None)
        minutes = win.TumblingWindower(timedelta(minutes=1), START)
        windows = win.count_window("count", read, clock, minutes, lambda e: e["customer"])
        results = op.map("result", windows.down, lambda kv: orjson.dumps({"key": kv[0], "window": kv[1][0], "value": kv[1][1]}))
    op.output("out", results, TestingSink(found))
    began, used = time.perf_counter(), time.process_time()
    run_main(flow)
    assert found, "nothing came out"
    return time.perf_counter() - began, time.process_time() - used


def _time(data: dict[str, Any]) -> datetime:
    return START + timedelta(milliseconds=data["id"])
