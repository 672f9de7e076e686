"""Which profiles of a list go behind the others, because they do much worse: looked at again once what was measured may change
it, and not for each call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from dspex.bus.records import Tried

if TYPE_CHECKING:
    from dspex.workers.pool.routing.measured import Measured

SLOWER: Final = 3.0  # times the median of another profile of the list: it is tried behind that one
FAILING: Final = 0.2  # of its calls failed, and twice as many as of another profile's: likewise
_LISTS: Final = 64  # whose orders are kept
_UNKNOWN: Final = -1.0  # a median
_CLOSE: Final = 1 - 1e-9  # to a bound: what floats may be off


class ListOrder(NamedTuple):
    """The profiles of a list, the worse ones last. `said`: of those; empty: there are none."""

    names: Sequence[str]
    said: Sequence[Tried]


class ListOrders:
    """Keeps the orders of lists of profiles, of which `measured` knows some: those of calls of one kind."""

    def __init__(self, measured: Mapping[str, Measured]) -> None:
        self._measured = measured
        self._kept: dict[Sequence[str], ListOrder] = {}
        self._bounds: dict[Measured, tuple[float, float]] = {}  # medians with which the orders that are kept stay as they are

    def order(self, names: Sequence[str]) -> ListOrder:
        """The order of a list, a tuple."""
        found = self._kept.get(names)
        return self._looked_at(names) if found is None else found

    def learned(self, one: Measured) -> None:
        """More was measured of a profile."""
        if (bounds := self._bounds.get(one)) is not None:
            p50 = one.p50
            if one.error_rate > FAILING or not bounds[0] <= (_UNKNOWN if p50 is None else p50) <= bounds[1]:
                self._forget()

    def _forget(self) -> None:
        self._kept.clear()
        self._bounds.clear()

    def _looked_at(self, names: Sequence[str]) -> ListOrder:
        known = {name: self._measured[name] for name in names if name in self._measured}
        least = min((one.error_rate for one in known.values()), default=0.0)
        best = min((one.p50 for one in known.values() if one.p50 is not None), default=math.inf)
        worse = {name for name, one in known.items() if _is_worse(one, least, best)}
        last = [name for name in names if name in worse]
        if len(last) == len(names):
            last, worse = [], set[str]()
        found = ListOrder((*(name for name in names if name not in worse), *last), [Tried(name, "behind") for name in last])
        if best and all(one.error_rate <= FAILING for one in known.values()):
            self._keep(names, found, known.values(), best)
        return found

    def _keep(self, names: Sequence[str], order: ListOrder, known: Iterable[Measured], best: float) -> None:
        """Keep an order for as long as no median leaves its bounds: the one that is nearest to SLOWER times the best does not
        get there while both change by less than the root of what is between them.
        """
        if len(self._kept) >= _LISTS:
            self._forget()
        ratios = [one.p50 / (SLOWER * best) for one in known if one.p50 is not None]
        change = math.sqrt(min((max(r, 1 / r) for r in ratios), default=1.0)) * _CLOSE
        for one in known:
            low, high = self._bounds.get(one, (_UNKNOWN, math.inf))
            least, most = (_UNKNOWN, _UNKNOWN) if one.p50 is None else (one.p50 / change, one.p50 * change)
            self._bounds[one] = max(low, least), min(high, most)
        self._kept[names] = order


def _is_worse(one: Measured, least: float, best: float) -> bool:
    """Than those of the least error rate, and of the best median."""
    return (one.error_rate > FAILING and one.error_rate > 2 * least) or (one.p50 or 0.0) > SLOWER * best
