"""The slots of a pool: which calls have one, and how many more calls there is room for. Counted here and nowhere else."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from dspex.bus.errors import CallError
from dspex.workers.pool.child_process import Child


class Slots:
    """The slots of the children in `children`, `per_child` in each.

    Args:
        size: how many children there are when all are ready.

    Attributes:
        freed: called when there may be a free slot again.
    """

    def __init__(self, children: Sequence[Child], size: int, per_child: int) -> None:
        self._children, self._per_child = children, per_child
        self.total = size * per_child
        self.freed: Callable[[], None] = lambda: None
        self._refusal: Callable[[], CallError] | None = None
        self._without_child = 0  # reservations that have no child yet
        self._waiting: deque[tuple[asyncio.Future[Child], int]] = deque()  # with the number of slots wanted

    @property
    def usable(self) -> list[Child]:
        """The children that take calls."""
        return [c for c in self._children if c.hello is not None and not c.retiring and not c.gone.is_set()]

    @property
    def waiting(self) -> int:
        """Calls that were accepted and wait for a slot."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Calls that run, those in children that take no more included."""
        return sum(c.busy for c in self._children)

    @property
    def free(self) -> int:
        """How many more calls may be accepted; under 0 where a child died and took its slots with it.

        While calls are refused all slots count as free: to refuse a call takes no time.
        """
        if self._refusal is not None:
            return self.total - self._without_child
        return sum(self._per_child - c.busy for c in self.usable) - self._without_child

    def reserve(self, *, alone: bool = False) -> Reservation:
        """A slot for a call that was just accepted: counted from now on, until the reservation is left.

        Args:
            alone: all slots of a child, so that no other call dies with this one.
        """
        self._without_child += 1
        return Reservation(self, self._per_child if alone else 1)

    def hand_out(self) -> None:
        """Give free slots to the calls that wait. To be called when there may be more of them than before."""
        while self._waiting and (child := self._pick(self._waiting[0][1])) is not None:
            future, slots = self._waiting.popleft()
            if not future.done():
                self._occupy(child, slots)
                future.set_result(child)
        self.freed()

    def refuse(self, refusal: Callable[[], CallError]) -> None:
        """From now on no call gets a slot, those that wait included: each gets the error that `refusal` makes."""
        self._refusal = refusal
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(refusal())

    def allow(self) -> None:
        """The end of `refuse`."""
        self._refusal = None

    # -- what a reservation does -----------------------------------------------------------------------------------
    async def occupy(self, slots: int) -> Child:
        """A child with `slots` slots taken; waits for one, behind those that wait. Raises the error of `refuse`."""
        if self._refusal is not None:
            raise self._refusal()
        if not self._waiting and (child := self._pick(slots)) is not None:
            self._occupy(child, slots)
            return child
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, slots))
        try:
            return await future
        except asyncio.CancelledError:
            if (future, slots) in self._waiting:
                self._waiting.remove((future, slots))
                self.hand_out()  # it may have been the one that the others waited behind
            elif future.done() and not future.cancelled() and future.exception() is None:
                self._without_child += 1  # the reservation has no child again
                self.vacate(future.result(), slots)
            raise

    def vacate(self, child: Child | None, slots: int) -> None:
        """End a reservation, with the child that it had."""
        if child is None:
            self._without_child -= 1
        else:
            child.busy -= slots
            child.calls += 1
        self.hand_out()

    def _occupy(self, child: Child, slots: int) -> None:
        self._without_child -= 1
        child.busy += slots

    def _pick(self, slots: int) -> Child | None:
        open_ = [c for c in self.usable if c.busy + slots <= self._per_child]
        return min(open_, key=lambda c: c.busy, default=None)


class Reservation:
    """The slot of one call, as a context: given back at its end, whatever happened."""

    def __init__(self, slots: Slots, count: int) -> None:
        self._slots, self._count = slots, count
        self._child: Child | None = None

    async def child(self) -> Child:
        """The child that runs the call; waits for a free slot. Raises WorkerLost in a failed or stopped pool."""
        self._child = await self._slots.occupy(self._count)
        return self._child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._slots.vacate(self._child, self._count)
