"""What a process would write of a limit, by what is stored and what its calls ask for. Nothing waits here, or changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from operator import add
from typing import Final, NamedTuple

from dspex.bus.serving.limits import GONE, Amounts, Ledger, Limit, Measure, Metered, Share

AHEAD: Final = 0.02  # of a limit, that a process may reserve beyond what its calls need
AHEAD_OF_REST: Final = 0.1  # of what nobody has yet; the less there is, the less is reserved
BEAT: Final = GONE / 3
SOON: Final = 2.0  # seconds after which there may be room again where others have reserved more than they have used
TINY: Final = 1e-9  # sums of costs are not exact


class Full(NamedTuple):
    """A call does not fit. `taken`: used or reserved by all; `again`: seconds until there may be room. `spent`: it would fit
    as little if nothing were reserved. `amount`: of the call.
    """

    measure: Measure
    limit: Limit
    taken: float
    again: float
    spent: bool
    amount: float


@dataclass
class Mine:
    """Of one measure in its window.

    Attributes:
        granted: what the stored value lets this process use. used: by calls that are over, and not settled yet.
        held: by calls that run. listed: the stored value has a share of this process.
    """

    window: int = 0
    granted: float = 0.0
    used: float = 0.0
    held: float = 0.0
    listed: bool = False


@dataclass
class Own:
    """All that a process has of a limit. `id`: of the process."""

    id: str
    about: dict[str, str]
    limits: Mapping[Measure, Limit]
    of: dict[Measure, Mine]
    _same: tuple[float, float] = 0.0, 0.0  # from when to when no window ends: it is asked for at each call

    def roll(self, now: float) -> bool:
        """Begin the windows that it is; whether one had been begun that is far ahead."""
        if self._same[0] <= now < self._same[1]:
            return False
        far = False
        for measure, mine in self.of.items():
            window = int(now // per) if (per := self.limits[measure].per) else mine.window
            far = far or window < mine.window - 1
            if not mine.window - 1 <= window <= mine.window:
                self.of[measure] = Mine(window)
        pers = [limit.per for limit in self.limits.values() if limit.per]
        begun = [now // per * per for per in pers]
        self._same = max(begun, default=now), min(map(add, begun, pers), default=inf)
        return far


@dataclass
class LedgerPlan:
    """A value to be written. `outcomes`: of each that asks: None, or why not. `changes`: whether it says anything new."""

    ledger: Ledger
    shares: dict[Measure, Share] = field(default_factory=dict[Measure, Share])
    outcomes: list[Full | None] = field(default_factory=list["Full | None"])
    changes: bool = False

    @property
    def refused(self) -> bool:
        return any(full is not None for full in self.outcomes)


def planned(before: Ledger, own: Own, asks: Sequence[Amounts], now: float, *, closing: bool) -> LedgerPlan:
    """What to write in place of `before`. `closing`: give back all that is not held."""
    ledger = Ledger.read(before.pack())
    ledger.about, ledger.limits, ledger.at = own.about, dict(own.limits), now
    ledger.bury(now, but=own.id)
    others: dict[Measure, tuple[float, float]] = {measure: _others(ledger, own, measure) for measure in own.limits}
    plan = LedgerPlan(ledger)
    given: dict[Measure, float] = dict.fromkeys(own.limits, 0.0)
    for amounts in asks:
        full = next(_too_much(own, amounts, given, others, now), None)
        plan.outcomes.append(full)
        for measure, amount in amounts.items() if full is None else ():
            given[measure] += amount
    for measure, mine in own.of.items():
        needed = mine.used + mine.held + given[measure]
        ahead = _ahead(own.limits[measure], measure, others[measure][0] + needed) if asks and not closing else 0.0
        plan.shares[measure] = Share(needed + ahead, mine.used)
        _note(ledger, own, measure, plan.shares[measure])
    if any(own.id in tally.shares for tally in ledger.tallies.values()):
        ledger.seen[own.id] = now
    else:
        ledger.seen.pop(own.id, None)
    beat = own.id in ledger.seen and now - before.seen.get(own.id, 0.0) >= BEAT
    plan.changes = beat or _said(ledger) != _said(before)
    return plan


def _others(ledger: Ledger, own: Own, measure: Measure) -> tuple[float, float]:
    """What all others may have used, and what of it they have."""
    tally = ledger.tally(measure, own.of[measure].window)
    share = tally.shares.get(own.id, Share(0.0, 0.0))
    return tally.taken - share.granted, tally.used - share.used


def _too_much(
    own: Own, asked: Amounts, given: Amounts, others: Mapping[Measure, tuple[float, float]], now: float
) -> Iterator[Full]:
    """Of what there is not enough."""
    for measure, amount in asked.items():
        limit, mine = own.limits[measure], own.of[measure]
        taken = others[measure][0] + mine.used + mine.held + given[measure]
        if limit.most is None or taken + amount <= limit.most + TINY:
            continue
        rest = (mine.window + 1) * limit.per - now if limit.per else SOON
        spent = others[measure][1] + mine.used + amount > limit.most + TINY
        yield Full(measure, limit, taken, max(0.01, rest if spent else min(SOON, rest)), spent, amount)


def _ahead(limit: Limit, measure: Measure, taken: float) -> float:
    if limit.most is None or measure == "concurrent":
        return 0.0
    found = max(0.0, min(limit.most * AHEAD, (limit.most - taken) * AHEAD_OF_REST))
    return float(int(found)) if measure == "requests" else found


def _note(ledger: Ledger, own: Own, measure: Measure, share: Share) -> None:
    """Write the share down; one that nothing is held of any more is settled, and is a share no more.

    It was listed before, so that a settlement whose answer is lost is found out, and not made twice.
    """
    mine = own.of[measure]
    tally = ledger.tally(measure, mine.window)
    if share.granted > share.used + TINY or (share.used and not mine.listed):
        tally.shares[own.id] = share
    else:
        tally.shares.pop(own.id, None)
        tally.settled += share.used


def _said(ledger: Ledger) -> tuple[object, ...]:
    """What a value says, but for when who wrote last; and nothing of windows in which nothing was used."""
    tallies: dict[Measure, Metered] = {m: t for m, t in ledger.tallies.items() if t.settled or t.shares}
    return tallies, sorted(ledger.seen), ledger.limits if tallies else None
