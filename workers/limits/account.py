"""What this process has of one limit: its share, and what of it its calls hold and have used.

A call that fits into the share costs no round trip. One that does not asks for more, together with all others that ask
meanwhile: one write for all of them, with compare and set. A process asks for a little more than it needs, and gives back
within a second what it does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import structlog

from dspex.bus.errors import BusError, CallError, DecodeError, Fenced, Saturated, Unsettled
from dspex.bus.port import Bucket
from dspex.bus.seldom import Seldom
from dspex.bus.serving.limits import Amounts, Ledger, Limit, Measure
from dspex.bus.tasks import Tasks
from dspex.workers.limits.planning import SOON, TINY, Full, LedgerPlan, Mine, Own, planned
from dspex.workers.limits.refusals import named

log = structlog.get_logger("dspex.workers")

MOST: Final = 1e15  # that is counted of what a process has used: a model's server may say any number
LOOK: Final = 1.0  # seconds between two looks at what can be given back
_TRIES: Final = 200  # of one write, and of a look before it: each time it fails, another process has got on


class Lease(NamedTuple):
    """What a call was allowed to use. `windows`: in which windows."""

    amounts: Amounts
    windows: Mapping[Measure, int]

    def and_more(self, more: Lease) -> Lease:
        """Both. Of a window that has ended nothing is left."""
        kept = {m: a for m, a in self.amounts.items() if self.windows[m] == more.windows[m]}
        return more._replace(amounts={m: a + kept.get(m, 0.0) for m, a in more.amounts.items()})


class _Ask(NamedTuple):
    amounts: Amounts
    outcome: asyncio.Future[Lease | Full]


class Account:
    """One limit, or the limits of one profile.

    Args:
        about: what it is of; see Ledger.
        limits: by what is counted.
        id: of this process.
        bucket: opens the bucket of limits, or gives the one that is open. It is told whether something is limited; None: what
            is counted is told to nobody.
        now: the server's time.
        tasks: run what is written in the background.
    """

    def __init__(
        self,
        about: Mapping[str, str],
        limits: Mapping[Measure, Limit],
        id: str,
        bucket: Callable[[bool], Awaitable[Bucket | None]],
        now: Callable[[], float],
        tasks: Tasks,
    ) -> None:
        self.about, self.limits = dict(about), limits
        self.limited: dict[Measure, Limit] = {measure: limit for measure, limit in limits.items() if limit.most is not None}
        self._bucket, self._now, self._tasks = bucket, now, tasks
        self._own = Own(id, self.about, limits, {measure: Mine() for measure in limits})
        self._asks: list[_Ask] = []
        self._writing: asyncio.Task[None] | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._known: tuple[Ledger, int] | None = None  # what was written or read last, and its revision
        self._full: tuple[Full, float] | None = None  # the last refusal, and until when it is believed
        self._seldom = Seldom(log)

    @property
    def idle(self) -> bool:
        """Whether nothing is held, reserved or to be written."""
        return not self._asks and not any(m.held or m.listed or m.used or m.granted for m in self._own.of.values())

    # -- what calls do
    def try_take(self, amounts: Amounts) -> Lease | Full | None:
        """What can be said without asking: a lease, where the share has room, or what was refused just now; else None."""
        if not self.limited:  # it only counts, which is done at the end of a call
            return Lease({}, {})
        self._roll()
        wanted = self._capped(amounts)
        if not self._asks and all((m := self._own.of[w]).used + m.held + a <= m.granted + TINY for w, a in wanted.items()):
            return self._lease(wanted)
        if self._full is not None:
            full, until = self._full
            if self._now() >= until:
                self._full = None
            elif min(amounts.get(full.measure, 0.0), full.limit.most or 0.0) >= full.amount > 0:
                return full
        return None

    async def take(self, amounts: Amounts) -> Lease | Full:
        """A lease, or why there is none. Raises Saturated where the bus does not say what is used."""
        if (said := self.try_take(amounts)) is not None:
            return said
        asked = _Ask(self._capped(amounts), asyncio.get_running_loop().create_future())
        self._asks.append(asked)
        self._write()
        try:
            return await asked.outcome
        except asyncio.CancelledError:  # its call was given up: what it was given just before is nobody's
            if asked.outcome.done() and not asked.outcome.cancelled() and isinstance(given := asked.outcome.result(), Lease):
                self.settle(given, {})
            raise

    def settle(self, lease: Lease | None, used: Amounts) -> None:
        """The end of a call. `lease`: None for one that asked for nothing. What it used counts where it was allowed to, if that
        window has not ended.
        """
        self._roll()
        for measure, mine in self._own.of.items():
            if lease is not None and measure in lease.amounts:
                if lease.windows[measure] != mine.window:
                    continue
                held = mine.held - lease.amounts[measure]
                mine.held = held if held > TINY else 0.0  # a rest of sums of costs would never be nothing
                self._full = None
            if measure != "concurrent":
                mine.used = min(MOST, mine.used + used.get(measure, 0.0))
        self._tell()

    def spend(self, lease: Lease, used: Amounts) -> Lease:
        """A call has used this, and goes on: what it may still use. All of it counts, in the window that it is now."""
        self._roll()
        taken: dict[Measure, float] = {m: min(amount, used.get(m, 0.0)) for m, amount in lease.amounts.items()}
        for measure, mine in self._own.of.items():
            if lease.windows.get(measure) == mine.window:
                held = mine.held - taken[measure]
                mine.held = held if held > TINY else 0.0
            if measure != "concurrent":
                mine.used = min(MOST, mine.used + used.get(measure, 0.0))
        self._tell()
        return lease._replace(amounts={measure: amount - taken[measure] for measure, amount in lease.amounts.items()})

    async def close(self) -> None:
        """Give back all that is not held."""
        if self._looking is not None:
            self._looking.cancel()
        if self._writing is not None:
            await asyncio.wait([self._writing])
        with suppress(BusError, CallError):  # what is not given back counts as used; those who wait need not go on for it
            for _ in range(2):  # what was not listed is listed first
                if not self.idle:
                    await self._exchange([], closing=True)

    # -- what is written
    def _over(self) -> bool:
        """Whether calls have used more than this process may."""
        return any(m.used + m.held > m.granted + TINY for m in (self._own.of[measure] for measure in self.limited))

    def _capped(self, amounts: Amounts) -> dict[Measure, float]:
        """What to ask for: no more than the whole limit, or a call whose estimate is larger could never be made."""
        return {m: min(amounts.get(m, 0.0), limit.most or 0.0) for m, limit in self.limited.items()}

    def _lease(self, wanted: Amounts) -> Lease:
        for measure, amount in wanted.items():
            self._own.of[measure].held += amount
        return Lease(wanted, {measure: self._own.of[measure].window for measure in wanted})

    def _roll(self, now: float | None = None) -> None:
        """Begin the window that it is. One far ahead was begun by this machine's clock, before the server's was known."""
        if self._own.roll(self._now() if now is None else now):
            self._known = None

    def _tell(self) -> None:
        """Have written what was used: now where that is more than this process may use, else soon."""
        if self._over():
            self._write()
        else:
            self._look_later()

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK, self._look)

    def _look(self) -> None:
        self._looking = None
        self._roll()
        if not self.idle:
            self._write()

    def _write(self) -> None:
        if self._writing is None:
            self._writing = self._tasks.start(self._write_all(), "limits")

    async def _write_all(self) -> None:
        """Write until nobody asks any more."""
        try:
            while True:
                asks = list(self._asks)
                try:
                    await self._exchange(asks, closing=not asks)
                except (BusError, CallError) as error:
                    self._failed(asks, error)
                    break
                finally:
                    del self._asks[: len(asks)]
                if not self._asks and not self._over():
                    break
        finally:
            self._writing = None
        if self._asks:
            self._write()
        elif not self.idle:
            self._look_later()

    def _failed(self, asks: list[_Ask], error: BusError | CallError) -> None:
        self._known = None
        self._seldom.warning("what is used of a limit is not known", **self.about, why=error.message, fix=error.fix)
        for ask in asks:
            if not ask.outcome.done():
                why = f"what is used of {named(self.about)} cannot be read or written: {error.message}"
                ask.outcome.set_exception(Saturated(why, retry_after=SOON, fix=error.fix))

    async def _exchange(self, asks: list[_Ask], *, closing: bool) -> None:
        """Write one value: what calls ask for, what was used, what is given back. `closing`: give back all that is not held."""
        bucket = await self._bucket(bool(self.limited))
        if bucket is None:
            self._own.of = {measure: Mine(mine.window) for measure, mine in self._own.of.items()}
            return
        fresh = False
        for _ in range(_TRIES):
            now = self._now()
            self._roll(now)
            if self._known is None:
                self._known, fresh = await self._read(bucket), True
                continue
            ledger, revision = self._known
            plan = planned(ledger, self._own, [ask.amounts for ask in asks], now, closing=closing)
            if not plan.changes:
                if plan.refused and not fresh:  # what is known may be old
                    self._known = None
                    continue
                self._apply(plan, asks, now)
                return
            for measure, share in plan.shares.items():  # what is given back is not used from here on
                self._own.of[measure].granted = min(self._own.of[measure].granted, share.granted)
            try:
                written = await bucket.put(plan.ledger.key, plan.ledger.pack(), revision=revision)
            except (Fenced, Unsettled):
                self._known = None
                continue
            self._known = plan.ledger, written
            self._apply(plan, asks, now)
            return
        raise Saturated(f"{_TRIES // 2} writes were overtaken")

    async def _read(self, bucket: Bucket) -> tuple[Ledger, int]:
        found = await bucket.get(Ledger(self.about).key)
        if found is None:
            ledger, revision = Ledger(self.about), 0
        else:
            try:
                ledger, revision = Ledger.read(found[0]), found[1]
            except DecodeError as error:  # no pool wrote it: to stop all calls would be worse than to count anew
                self._seldom.error("the value of a limit cannot be read: it is counted anew", **self.about, why=error.message)
                ledger, revision = Ledger(self.about), found[1]
        for measure, mine in self._own.of.items():
            tally = ledger.tallies.get(measure)
            if tally is not None and tally.window > mine.window + 1:  # by a clock that is far ahead
                del ledger.tallies[measure]
            elif tally is not None and tally.window > mine.window:
                self._own.of[measure] = Mine(tally.window)  # another process's clock is a little ahead
            elif mine.listed and (tally is None or self._own.id not in tally.shares):
                # its last write has given all back, and the answer was lost; or it was taken for dead: all that it had counts
                mine.used, mine.granted, mine.listed = 0.0, 0.0, False
        return ledger, revision

    def _apply(self, plan: LedgerPlan, asks: list[_Ask], now: float) -> None:
        """What was planned is so."""
        for measure, share in plan.shares.items():
            mine, tally = self._own.of[measure], plan.ledger.tallies[measure]
            if mine.window != tally.window:
                continue  # it has ended meanwhile
            if self._own.id in tally.shares:
                mine.granted, mine.listed = share.granted, True
            else:
                mine.used, mine.granted, mine.listed = max(0.0, mine.used - share.used), 0.0, False
        for ask, full in zip(asks, plan.outcomes):
            if full is not None:
                self._full = full, now + min(full.again, LOOK)
            if not ask.outcome.done():  # else nobody waits for it any more
                ask.outcome.set_result(self._lease(ask.amounts) if full is None else full)
