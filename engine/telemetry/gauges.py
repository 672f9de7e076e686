"""What is measured by looking: how far stages are behind, what is open, what pools do. All of it is in `Client.status`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Shown: TypeAlias = Mapping[str, Any]
"""What `Client.status` gives."""
GaugeRows: TypeAlias = Callable[[Shown], Iterator[tuple[float | None, dict[str, str]]]]
"""Values, each with its labels; None where it is not known."""


def _of_stages(key: str) -> GaugeRows:
    def rows(status: Shown) -> Iterator[tuple[float | None, dict[str, str]]]:
        for stage in status["stages"]:
            yield stage[key], {"topology": stage["topology"], "stage": stage["stage"]}

    return rows


def _open_calls(status: Shown) -> Iterator[tuple[float | None, dict[str, str]]]:
    for stage in status["stages"]:
        for pool, count in stage["calls"].items():
            yield count, {"topology": stage["topology"], "stage": stage["stage"], "pool": pool}


def _stalled(status: Shown) -> Iterator[tuple[float | None, dict[str, str]]]:
    for engine in status["engines"]:
        yield float(not engine["alive"] or engine.get("health", "ok") != "ok"), {"engine": engine["engine"]}


def _slots(status: Shown) -> Iterator[tuple[float | None, dict[str, str]]]:
    for pool in (one for one in status["pools"] if one["id"] is not None):
        where = {"pool": pool["pool"], "process": pool["id"]}
        yield pool["busy"], {**where, "state": "busy"}
        yield pool["slots"] * pool["ready"] - pool["busy"], {**where, "state": "free"}


def _waiting(status: Shown) -> Iterator[tuple[float | None, dict[str, str]]]:
    for pool in (one for one in status["pools"] if one["id"] is not None):
        yield pool.get("waiting"), {"pool": pool["pool"], "process": pool["id"]}


def _rss(status: Shown) -> Iterator[tuple[float | None, dict[str, str]]]:
    for pool in (one for one in status["pools"] if one["id"] is not None):
        for child in pool.get("children", ()):
            yield child.get("rss"), {"pool": pool["pool"], "process": pool["id"], "worker": str(child.get("pid"))}


def _letters(status: Shown) -> Iterator[tuple[float | None, dict[str, str]]]:
    for row in status["letters"]:
        yield row["count"], {"topology": row["topology"] or "", "node": row["node"] or "", "reason": row["reason"] or ""}


def _stream(status: Shown) -> Iterator[tuple[float | None, dict[str, str]]]:
    yield status["server"]["bytes"], {}


GAUGES: tuple[tuple[str, str, str, GaugeRows], ...] = (
    ("dspex.stage.lag", "{event}", "Events of its source that a stage has not read.", _of_stages("lag")),
    ("dspex.stage.oldest", "s", "Since the oldest event was stored that is not processed.", _of_stages("oldest")),
    ("dspex.stage.put_off", "{event}", "Events that wait for their time.", _of_stages("put_off")),
    ("dspex.stage.unowned", "{partition}", "Partitions without an owner.", _of_stages("unowned")),
    ("dspex.calls.outstanding", "{call}", "Calls that are open.", _open_calls),
    ("dspex.pool.slots", "{slot}", "Calls that a pool's process runs, and could run besides.", _slots),
    ("dspex.pool.waiting", "{call}", "Calls that a process has taken and that have no slot yet.", _waiting),
    ("dspex.worker.rss", "By", "Memory of a worker process and its children.", _rss),
    ("dspex.letters.stored", "{letter}", "Dead letters that wait for somebody.", _letters),
    ("dspex.stream.size", "By", "Bytes that the application's stream holds.", _stream),
    ("dspex.stalled", "1", "1 for an engine that makes no progress, or is gone.", _stalled),
)
"""Name, unit, meaning, and where the values are."""
