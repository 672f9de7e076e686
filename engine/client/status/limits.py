"""What is used of limits and budgets, as pools wrote it down."""

from __future__ import annotations

from collections.abc import Iterator

import structlog
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.errors import DecodeError
from dspex.bus.port import Bus
from dspex.bus.serving.limits import Ledger, Measure, key_of

_log = structlog.get_logger("dspex.client")
MOST_RUNS = 20  # whose budgets are shown


class LimitRow(TypedDict):
    """What is used of one limit, or counted of a profile.

    Attributes:
        lm: the profile; None for a budget.
        budget, tenant, run: which; None where it is none, or one for all.
        what: "requests", "tokens", "cost" (USD) or "concurrent".
        used: in this window. reserved: besides, by calls that run.
        most: the limit; left: what of it is neither used nor reserved. Both None where it is only counted.
        per: seconds of a window; 0: there is one. ends: seconds until it ends; None for 0.
    """

    lm: str | None
    budget: str | None
    tenant: str | None
    run: str | None
    what: Measure
    used: float
    reserved: float
    most: float | None
    left: float | None
    per: float
    ends: float | None


async def limit_rows(bus: Bus, app: str, now: float) -> list[LimitRow]:
    """Of all profiles that were asked lately, and all budgets that were used. Raises BusError."""
    name = subjects.limits(app)
    if not await bus.has("bucket", name):
        return []
    found: list[tuple[int, Ledger]] = []
    for key, (value, revision) in (await (await bus.bucket(name)).items()).items():
        try:
            ledger = Ledger.read(value)
        except DecodeError as error:
            _log.warning("what no pool wrote is left out", key=key, why=error.message)
            continue
        if key_of(ledger.about) == key:
            found.append((revision, ledger))
    runs = sorted([entry for entry in found if "run" in entry[1].about], key=lambda entry: -entry[0])[:MOST_RUNS]
    others = [entry for entry in found if "run" not in entry[1].about]
    ledgers = [ledger for _, ledger in [*others, *runs]]
    return [row for ledger in sorted(ledgers, key=lambda ledger: sorted(ledger.about.items())) for row in _rows(ledger, now)]


def _rows(ledger: Ledger, now: float) -> Iterator[LimitRow]:
    ledger.bury(now, but="")
    about = ledger.about
    for what, limit in ledger.limits.items():
        tally = ledger.tallies.get(what)
        over = tally is None or (limit.per > 0 and tally.window < now // limit.per)
        used, taken = (0.0, 0.0) if tally is None or over else (tally.used, tally.taken)
        if limit.most is None and not used:
            continue
        yield {
            "lm": about.get("lm"),
            "budget": about.get("budget"),
            "tenant": about.get("tenant"),
            "run": about.get("run"),
            "what": what,
            "used": round(used, 6),
            "reserved": round(taken - used, 6),
            "most": limit.most,
            "left": None if limit.most is None else round(max(0.0, limit.most - taken), 6),
            "per": limit.per,
            "ends": round((now // limit.per + 1) * limit.per - now, 1) if limit.per else None,
        }
