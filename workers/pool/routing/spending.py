"""What a call is expected to cost with a profile: by its price, and by the tokens that calls of the program used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from dspex.bus.records import Tried
from dspex.workers.config import Profile

ENOUGH: Final = 8  # calls, from which on what a program uses with a profile is believed; before, what it uses with all
WEIGHS: Final = 64  # calls that a mean remembers, about
KEPT: Final = 128  # calls for which an order is kept once the means are of WEIGHS: they hardly move in so many
_LISTS: Final = 16  # of profiles whose order is kept
PROGRAMS: Final = 256  # the latest: whoever may ask could name any number


@dataclass(slots=True)
class Tokens:
    """Of a call, in the mean of so many."""

    read: float = 0.0
    cached: float = 0.0
    written: float = 0.0
    calls: int = 0

    def add(self, read: int, cached: int, written: int) -> None:
        """One more call."""
        if self.calls < WEIGHS:
            self.calls += 1
        part = 1 / self.calls
        self.read += (read - self.read) * part
        if cached or self.cached:
            self.cached += (cached - self.cached) * part
        self.written += (written - self.written) * part


class ByCost(NamedTuple):
    """The profiles of a list as they are asked. `dearer`: said of those that are written before the first."""

    names: Sequence[str]
    dearer: Sequence[Tried]


@dataclass(slots=True)
class _OfProgram:
    in_all: Tokens = field(default_factory=Tokens)
    by: dict[str, Tokens] = field(default_factory=dict[str, Tokens])  # by profile
    orders: dict[tuple[tuple[str, ...], bool], ByCost] = field(default_factory=dict[tuple[tuple[str, ...], bool], ByCost])
    since: int = 0  # calls since they were made


class Spending:
    """Measures what programs use, in one process of a pool."""

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._programs: dict[str, _OfProgram] = {}
        self._latest = "", _OfProgram()
        self._unknown = _OfProgram(Tokens(read=3.0, written=1.0))  # a program that was not called: how prices compare
        # USD of a token that is read, of one that the provider had in its cache, and of one that is written
        self._usd = {name: (p.cost_of(1, 0), p.cost_of(1, 0, 1), p.cost_of(0, 1)) for name, p in profiles.items()}
        self.priceless = frozenset(name for name, profile in profiles.items() if not profile.priced)

    def by_cost(self, program: str, names: Sequence[str], *, curious: bool) -> ByCost | None:
        """The order in which they are asked; as they are written where they cost the same, and last what is not there. None
        where one of them has no price.

        `curious`: before the cheapest those that may cost less, of which nobody knows yet how much they write.
        """
        found = self._programs.get(program, self._unknown)
        key = tuple(names), curious
        if (kept := found.orders.get(key)) is None:
            if not self.priceless.isdisjoint(names):
                return None
            costs = {name: self._cost(found, name) for name in names}
            order = sorted(names, key=costs.__getitem__)
            if curious:
                least = costs[order[0]]
                order.sort(key=lambda name: not self._may_cost_less(found, name, least))
            if len(found.orders) >= _LISTS:
                found.orders.clear()
            dearer = [Tried(name, "dearer") for name in names[: names.index(order[0])]]
            kept = found.orders[key] = ByCost(tuple(order), dearer)
        return kept

    def _found(self, program: str) -> _OfProgram:
        found = self._programs.pop(program, None) or _OfProgram()
        self._programs[program] = found  # the latest last
        if len(self._programs) > PROGRAMS:
            del self._programs[next(iter(self._programs))]
        self._latest = program, found
        return found

    def _cost(self, found: _OfProgram, name: str) -> float:
        """What a call is expected to cost, in USD; with a profile that is not there more than with any other."""
        if name not in self._usd:
            return math.inf
        read, cached, written = self._usd[name]
        of = found.by.get(name)
        if of is None or of.calls < ENOUGH:
            of = found.in_all
        return (of.read - of.cached) * read + of.cached * cached + of.written * written

    def _may_cost_less(self, found: _OfProgram, name: str, than: float) -> bool:
        """Whether a profile that the program was hardly called with may cost less than that, if it writes little."""
        if found is self._unknown or name not in self._usd or ((of := found.by.get(name)) is not None and of.calls >= ENOUGH):
            return False
        read, cached, _ = self._usd[name]
        return (found.in_all.read - found.in_all.cached) * read + found.in_all.cached * cached < than

    def learn(self, program: str, lm: str, usage: Mapping[str, Any]) -> None:
        """What a call has used, as its record says, whatever came of it. No tokens: the model's server tells none."""
        read, written, cached = usage.get("input_tokens", 0), usage.get("output_tokens", 0), usage.get("cached_tokens", 0)
        if not read and not written:
            return
        found = self._latest[1] if program == self._latest[0] else self._found(program)
        if cached > read:
            cached = read
        found.in_all.add(read, cached, written)
        own = found.by.get(lm)
        if own is None:
            own = found.by[lm] = Tokens()
        own.add(read, cached, written)
        found.since += 1
        if found.in_all.calls < WEIGHS or own.calls <= ENOUGH or found.since >= KEPT:
            found.orders.clear()
            found.since = 0
