"""Which way calls went: who answered them, and why it was not who comes first."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from dspex.bus.records import ANSWERED, BEGAN, CallRecord, CallRequest

MOST: Final = 200  # kinds of decisions that are counted one by one; the operators of a topology make a few each


class RouteTaken(NamedTuple):
    """One kind of decision.

    Attributes:
        topology, node: of the call; "" for one of no topology.
        route: as in CallRecord.
        lm: the profile that answered; "" for none.
        reason: "ok"; the class of the error that the call ended in; or what kept the first profile of a list from answering.
    """

    topology: str
    node: str
    route: str
    lm: str
    reason: str


class Routes:
    """Counts the decisions of one process of a pool."""

    def __init__(self) -> None:
        self._counts: Counter[RouteTaken] = Counter()

    def count(self, work: CallRequest, record: CallRecord) -> None:
        """One more."""
        if work.describe:
            return
        taken = RouteTaken(work.topology, work.node, record.route, record.lm, _reason(work, record))
        if taken not in self._counts and len(self._counts) >= MOST:
            taken = RouteTaken("", "", record.route, "", taken.reason if taken.reason == "ok" else "other")
        self._counts[taken] += 1

    def rows(self) -> list[dict[str, object]]:
        """Each with its count, for `status`."""
        return [{**taken._asdict(), "calls": count} for taken, count in self._counts.items()]


def _reason(work: CallRequest, record: CallRecord) -> str:
    if record.error is not None:
        return str(record.error.get("type", ""))[:60]
    first = work.spec.lm[0] if work.spec.lm else record.lm
    return next((tried.why[:60] for tried in record.routing if tried.lm == first and tried.why not in (ANSWERED, BEGAN)), "ok")
