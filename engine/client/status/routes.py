"""Which models answer, and which way calls went: what the processes of pools say of that, together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NotRequired

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from dspex.engine.client.status.rows import OperatorRow, PoolRow

_STATES: Final = ("closed", "half-open", "open")  # of breakers: the last one lets least pass


class LmRow(TypedDict):
    """A profile that calls may use, or (`program`) a program whose calls timed out.

    Attributes:
        breaker: "closed", "open" (nothing is asked of it), or "half-open" (one call tries it). Each process of a pool has its
            own: of several, the one that lets least pass.
        retry_after: seconds until the next call may be made.
        calls, errors: since the processes were started: answers, and calls that found it down.
        p50, p95: seconds of its last answers, in the process in which they take longest; None: too few yet.
    """

    lm: NotRequired[str]
    program: NotRequired[str]
    breaker: str
    retry_after: float
    calls: int
    errors: int
    p50: float | None
    p95: float | None


class RouteRow(TypedDict):
    """One way that calls went, since the processes of pools were started.

    Attributes:
        topology, node: of the calls; "" for those of no topology.
        route: "native", "worker", "cache" or "fallback". lm: the profile that answered; "" for none.
        reason: "ok"; the class of the error that they ended in; what kept the first profile of a list from answering ("open",
            "behind", the class of its error); for a fallback, why.
        calls: how many.
    """

    topology: str
    node: str
    route: str
    lm: str
    reason: str
    calls: int


def lm_rows(pools: Sequence[PoolRow]) -> list[LmRow]:
    """One row for each profile, and each program that hung, by name; programs last."""
    told: dict[tuple[bool, str], list[LmRow]] = {}
    for row in (row for pool in pools for row in pool.get("lms", [])):
        told.setdefault(("program" in row, row.get("lm", row.get("program", ""))), []).append(row)
    return [_together(rows) for _, rows in sorted(told.items())]


def _together(rows: Sequence[LmRow]) -> LmRow:
    worst = max(rows, key=lambda row: _STATES.index(row["breaker"]) if row["breaker"] in _STATES else -1)
    return {
        **worst,
        "calls": sum(row["calls"] for row in rows),
        "errors": sum(row["errors"] for row in rows),
        "p50": _most(row["p50"] for row in rows),
        "p95": _most(row["p95"] for row in rows),
    }


def _most(found: Iterable[float | None]) -> float | None:
    return max((one for one in found if one is not None), default=None)


def route_rows(pools: Sequence[PoolRow], operators: Sequence[OperatorRow]) -> list[RouteRow]:
    """One row for each way, the most used first. `operators`: engines count the fallbacks."""
    counts: Counter[tuple[str, str, str, str, str]] = Counter()
    for row in (row for pool in pools for row in pool.get("routes", [])):
        counts[row["topology"], row["node"], row["route"], row["lm"], row["reason"]] += row["calls"]
    for o in operators:
        if o["fallbacks"]:
            counts[o["topology"], o["node"], "fallback", "", o["why"]] += o["fallbacks"]
    return [
        {"topology": topology, "node": node, "route": route, "lm": lm, "reason": reason, "calls": calls}
        for (topology, node, route, lm, reason), calls in counts.most_common()
    ]
