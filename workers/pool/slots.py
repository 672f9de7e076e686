"""The slots of a pool: which calls have one, and how many more calls there is room for. Counted here and nowhere else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from dspex.bus.errors import CallError, ConfigError, DspexError, WorkerLost
from dspex.workers.pool.children.child_process import Child

NEAR: Final = 2  # by this part of its slots a child may be busier than another one, and still get its own calls


class Taker(Protocol):
    """A call that wants slots.

    Attributes:
        slots: how many; all of a child's where no other call shall die with it; 0: it only waits there.
        affinity: calls that have this in common go to one child where it has room; None: nothing.
        only: the child that it waits for, whatever others have room; None: any.
    """

    slots: int
    affinity: str | None
    only: Child | None

    def begin(self, child: Child) -> None:
        """It has them, in this child, until `Slots.vacate`."""
        ...

    def refuse(self, error: DspexError) -> None:
        """It never gets any."""
        ...


class Slots:
    """The slots of the children in `children`, `per_child` in each.

    Args:
        size: how many children there are when all are ready.

    Attributes:
        freed: called when there may be a free slot again.
    """

    def __init__(self, children: Sequence[Child], size: int, per_child: int) -> None:
        self._children, self.per_child = children, per_child
        self.total = size * per_child
        self.freed: Callable[[], None] = lambda: None
        self._refusal: Callable[[], CallError] | None = None
        self._waiting: deque[Taker] = deque()
        self._for_one: dict[Child, deque[Taker]] = {}  # those that wait for one child
        self._handing_out = False

    @property
    def usable(self) -> list[Child]:
        """The children that take calls."""
        return [child for child in self._children if _takes_calls(child)]

    @property
    def waiting(self) -> int:
        """Calls that were accepted and wait for a slot."""
        return len(self._waiting) + self.waiting_for_one

    @property
    def waiting_for_one(self) -> int:
        """Those of them that wait for one child."""
        return sum(map(len, self._for_one.values()))

    @property
    def busy(self) -> int:
        """Slots that are taken, those in children that take no more calls included."""
        return sum(c.busy for c in self._children)

    @property
    def free(self) -> int:
        """How many more calls may be accepted; under 0 where a child died and took its slots with it.

        While calls are refused all slots count as free: to refuse a call takes no time. Calls that wait for one child do not
        count, up to as many as there are slots: they hold up nobody else.
        """
        if self._refusal is not None:
            return self.total
        free = 0
        for child in self._children:  # it is asked several times a call
            if _takes_calls(child):
                free += self.per_child - child.busy
        if self._waiting:
            free -= sum(call.slots for call in self._waiting)
        return free - max(0, self.waiting_for_one - self.total) if self._for_one else free

    def take(self, call: Taker) -> None:
        """Have the call begin: at once where there is room, else behind those that wait."""
        if call.slots > self.per_child:
            call.refuse(self._too_many(call.slots))
        elif self._refusal is not None:
            call.refuse(self._refusal())
        elif call.only is not None:
            self._for_one.setdefault(call.only, deque()).append(call)
            self._hand_out_for(call.only)
        elif not self._waiting and (child := self._pick(call)) is not None:
            child.busy += call.slots
            call.begin(child)
        else:
            self._waiting.append(call)

    def leave(self, call: Taker) -> None:
        """A call that waits does so no more."""
        waiting = self._waiting if call.only is None else self._for_one.get(call.only, self._waiting)
        if call in waiting:
            waiting.remove(call)
            self.hand_out()  # it may have been the one that the others waited behind

    def vacate(self, child: Child, slots: int) -> None:
        """A call that had begun has ended."""
        child.busy -= slots
        child.calls += 1
        self.hand_out()

    def hand_out(self) -> None:
        """Give free slots to the calls that wait. To be called when there may be more of them than before."""
        if not self._handing_out:  # a call that ends as it begins calls this again
            self._handing_out = True
            for one in list(self._for_one):
                self._hand_out_for(one)
            while self._waiting and (child := self._pick(self._waiting[0])) is not None:
                call = self._waiting.popleft()
                child.busy += call.slots
                call.begin(child)
            self._handing_out = False
        self.freed()

    def _hand_out_for(self, child: Child) -> None:
        """The same for the calls that wait for this child."""
        waiting = self._for_one.get(child, deque[Taker]())
        while waiting and (not _takes_calls(child) or child.busy + waiting[0].slots <= self.per_child):
            call = waiting.popleft()
            if _takes_calls(child):
                child.busy += call.slots
                call.begin(child)
            else:
                said = f"worker {child.pid}, which the call waited for, takes no more calls"
                call.refuse(WorkerLost(said, retry_after=0.1))  # another one takes its part at once
        if not waiting:
            self._for_one.pop(child, None)

    def refuse(self, refusal: Callable[[], CallError]) -> None:
        """From now on no call gets a slot, those that wait included: each gets the error that `refusal` makes."""
        self._refusal = refusal
        for waiting in (self._waiting, *self._for_one.values()):
            while waiting:
                waiting.popleft().refuse(refusal())
        self._for_one.clear()

    def allow(self) -> None:
        """The end of `refuse`."""
        self._refusal = None

    def _too_many(self, slots: int) -> ConfigError:
        return ConfigError(
            f"a call takes {slots} slots, and each process of this pool has {self.per_child}",
            code="DX105",
            fix="lower cost= of the operator, or raise pools.*.slots",
        )

    def _pick(self, call: Taker) -> Child | None:
        """The child that has least to do; or the call's own, where that has room and not much more to do.

        Its own is the one with the highest hash, of those that live: when one comes or goes, only its calls move.
        """
        if not call.slots:  # those that only wait do so together, in one process
            return max(self.usable, key=lambda c: hash(c.pid), default=None)
        usable = [child for child in self.usable if child not in self._for_one] if self._for_one else self.usable
        least = min((c for c in usable if c.busy + call.slots <= self.per_child), key=lambda c: c.busy, default=None)
        if least is None or call.affinity is None or len(usable) == 1:
            return least
        own = max(usable, key=lambda c: hash((call.affinity, c.pid)))
        fits = own.busy + call.slots <= self.per_child and own.busy <= least.busy + self.per_child // NEAR
        return own if fits else least


def _takes_calls(child: Child) -> bool:
    return child.hello is not None and not child.retiring and not child.gone.is_set()
