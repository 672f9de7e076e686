"""Which of the queues of one priority a pool takes from next: the one whose tenants have used least, in tokens.

Each process of a pool keeps this by itself, of what it has served. It is start-time fair queueing: what a queue has used counts
from where the others stand, so that one that was empty gets no credit for that, and none has to wait for ever.

What a call will use is not known when it is taken. So what calls of its tenant usually use is charged then, and the difference
when it has its record: many calls that begin at once are shared as well as those that begin one after the other.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from dspex.bus.records import CallRecord

LATELY: Final = 60.0  # seconds for which a tenant counts as one of a queue
MOST_TENANTS: Final = 10_000  # of which it is known what their calls use
_NEWEST: Final = 0.2  # part of what is usual that the last call makes up


class Charge(NamedTuple):
    """What a call was charged when it was taken. `part`: of its tokens that its queue is charged."""

    queue: int
    tenant: str | None
    tokens: float
    part: float


class Shares:
    """What queues have used. Queues are named by numbers; where two have used the same, the lower one comes first."""

    def __init__(self) -> None:
        self._used: dict[int, float] = {}  # by each queue, for each tenant of it
        self._now = 0.0  # what the one had used whose turn it was last: nobody stands behind that
        self._tenants: dict[int, OrderedDict[str | None, float]] = {}  # of a queue, and when a call of each was taken last
        self._usual: dict[str | None, float] = {}  # tokens of a call, by tenant

    def first(self, queues: Iterable[int]) -> int:
        """The one to be taken from next."""
        return min(queues, key=lambda queue: (self._stands(queue), queue))

    def took(self, queue: int, tenant: str | None, waiting: Iterable[int] = ()) -> Charge:
        """A call is taken from a queue. `waiting`: those in which calls wait."""
        now = asyncio.get_running_loop().time()
        tenants = self._tenants.setdefault(queue, OrderedDict())
        tenants[tenant] = now
        tenants.move_to_end(tenant)
        while tenants[oldest := next(iter(tenants))] <= now - LATELY:
            del tenants[oldest]
        charge = Charge(queue, tenant, self._usual.get(tenant, self._usual_of_all()), 1 / len(tenants))
        stands = self._stands(queue)
        self._used[queue] = stands + charge.tokens * charge.part
        self._now = min([stands, *map(self._stands, waiting)])
        return charge

    def settle(self, charge: Charge, tokens: float, *, answered: bool = True) -> None:
        """It has used so many. What was not answered tells nothing of what calls of its tenant usually use."""
        self._used[charge.queue] += (tokens - charge.tokens) * charge.part
        if not answered:
            return
        usual = self._usual.pop(charge.tenant, tokens)
        self._usual[charge.tenant] = usual + (tokens - usual) * _NEWEST
        if len(self._usual) > MOST_TENANTS:
            del self._usual[next(iter(self._usual))]

    def _stands(self, queue: int) -> float:
        return max(self._used.get(queue, 0.0), self._now)

    def _usual_of_all(self) -> float:
        """Of the tenant that was served last: a guess for one of which nothing is known."""
        return next(reversed(self._usual.values()), 1.0)


def tokens_of(record: CallRecord) -> float:
    """What a call counts: its tokens, and 1 at least, so that calls of no model are shared, too."""
    found = [record.usage.get(name, 0) for name in ("input_tokens", "output_tokens")]
    return max(1.0, float(sum(number for number in found if isinstance(number, int))))
