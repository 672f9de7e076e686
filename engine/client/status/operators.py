"""Operators: what they did, as all engines that are alive say together, and the dead letters of theirs that wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Final, cast

from dspex.bus import subjects
from dspex.bus.errors import BusError, ConfigError
from dspex.bus.port import Bus, StreamInfo
from dspex.engine.client import letters
from dspex.engine.client.status.rows import EngineReport, LetterRow, OperatorReport, OperatorRow
from dspex.engine.graph.manifest import Manifest

MOST: Final = 100  # operators of one engine: it tells no more, so more are of somebody else
LOOKED_AT: Final = 1000  # letters whose reasons are read: to read all would take long where very many wait
SECONDS: Final = 2.0  # for which they are read: large ones lie in the object store, and each takes some round trips
_WHY = 200  # characters
_COUNTS = ("events", "calls", "errors", "retries", "fallbacks", "dead_letters", "input_tokens", "output_tokens")


def is_sound(report: EngineReport) -> bool:
    """Whether an engine can have counted this: whoever may write into the bucket can write any number."""
    operators = report.get("operators", [])
    numbers: list[object] = [o.get(name, 0) for o in operators for name in (*_COUNTS, "keyless", "handled", "seconds")]
    numbers += [number for o in operators for number in (o["p50"] or 0.0, o["cost"] or 0.0)]
    numbers += [n for s in report["stages"] for n in (s.get("rate", 0.0), *s.get("holds", {}).values())]
    return len(operators) <= MOST and all(isinstance(n, int | float) and isfinite(n) and n >= 0 for n in numbers)


def operator_rows(engines: Sequence[EngineReport], manifests: Mapping[str, Manifest]) -> list[OperatorRow]:
    """One row for each operator that did something, and for each that makes calls; in the order of their names."""
    told: dict[tuple[str, str], list[OperatorReport]] = {
        (topology, node): [] for topology, manifest in manifests.items() for node in manifest.calls
    }
    for report in engines:
        for one in report.get("operators", []):
            told.setdefault((one["topology"], one["node"]), []).append(one)
    return [_row(topology, node, found, manifests.get(topology)) for (topology, node), found in sorted(told.items())]


def _row(topology: str, node: str, told: Sequence[OperatorReport], manifest: Manifest | None) -> OperatorRow:
    costs = [one["cost"] for one in told if one["cost"] is not None]
    call = manifest.calls.get(node, {}) if manifest is not None else {}
    row: dict[str, object] = {name: sum(cast("int", one.get(name, 0)) for one in told) for name in _COUNTS}
    if any("order" in one for one in told):
        row |= {"order": "key", "keyless": sum(one.get("keyless", 0) for one in told)}
    if any("seconds" in one for one in told):
        seconds = sum(one.get("seconds", 0.0) for one in told)
        row |= {"handled": sum(one.get("handled", 0) for one in told), "seconds": round(seconds, 6)}
    return cast(
        "OperatorRow",
        {
            "topology": topology,
            "node": node,
            "pool": call.get("pool"),
            **row,
            "p50": _median([(one["p50"], one["calls"]) for one in told if one["p50"] is not None]),
            "cost": sum(costs) if costs else None,
            "why": next((one["why"][:_WHY] for one in told if one["why"]), ""),
        },
    )


def _median(found: Sequence[tuple[float, int]]) -> float | None:
    """Of the medians that engines tell, the one in the middle of all calls."""
    half, seen = sum(calls for _, calls in found) / 2, 0
    for p50, calls in sorted(found):
        seen += calls
        if seen >= half:
            return p50
    return None


async def letter_rows(bus: Bus, app: str, info: StreamInfo | None, manifests: Mapping[str, Manifest]) -> list[LetterRow]:
    """The dead letters that wait, by operator and reason, under the name that the operator has now.

    Of very many, or very large ones, the reasons of the oldest are read; the rest is one row without node and reason.
    """
    if info is None or not (count := await bus.count(info.name, [subjects.dead_pattern(app)])):
        return []
    found = Counter[tuple[str, str, str, str]]()
    oldest: dict[tuple[str, str, str, str], float] = {}
    now = asyncio.get_running_loop().time
    until = now() + SECONDS
    try:
        async for d in letters.listing(bus, app):
            renamed = manifests[d.topology].renamed if d.topology in manifests else {}
            key = (d.topology, renamed.get(d.node, d.node), d.reason, d.code)
            found[key] += 1
            oldest.setdefault(key, round(max(0.0, info.now - d.time.timestamp()), 1))
            if found.total() == LOOKED_AT or now() > until:
                break
    except (BusError, ConfigError):
        pass  # who may not read letters, or has no key for what is sealed, may count them
    return list(_letter_rows(found, oldest, count - found.total()))


def _letter_rows(
    found: Counter[tuple[str, str, str, str]], oldest: Mapping[tuple[str, str, str, str], float], rest: int
) -> Iterator[LetterRow]:
    for key, count in sorted(found.items(), key=lambda one: (one[0][:2], -one[1])):
        topology, node, reason, code = key
        yield {"topology": topology, "node": node, "reason": reason, "code": code, "count": count, "oldest": oldest[key]}
    if rest > 0:
        yield {"topology": None, "node": None, "reason": None, "code": None, "count": rest, "oldest": None}
