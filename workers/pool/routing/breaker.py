"""A circuit breaker: after some failures in a row nothing is asked of what fails, for a while; then one call tries it."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, NamedTuple, TypeAlias

BreakerState: TypeAlias = Literal["closed", "open", "half-open"]

PROBED_WITHIN: Final = 1.0  # seconds after which a call that came while another one tried may come again


class BreakerRule(NamedTuple):
    """When a breaker opens, and for how long: the setting `lm.*.breaker`.

    Attributes:
        failures: in a row. One answer among them, and the count begins again: a model that fails now and then is not down.
        within: seconds in which they must lie.
        open: seconds for which nothing is asked.
    """

    failures: int = 5
    within: float = 30.0
    open: float = 15.0


class Breaker:
    """Of one profile, or one program, in one process of a pool. Times are those of the event loop, in seconds.

    closed ── `failures` in a row ──► open ── `open` seconds ──► half-open ── an answer ──► closed
                                        ▲                            └──── a failure ───► open
    """

    def __init__(self, rule: BreakerRule) -> None:
        self.rule = rule
        self._failures: deque[float] = deque(maxlen=rule.failures)
        self._until: float | None = None  # it is open until then; None: it is closed
        self._probing = False

    def state(self, now: float) -> BreakerState:
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half-open"

    def wait(self, now: float) -> float:
        """Seconds until a call may be made; 0: now."""
        if self._until is None:
            return 0.0
        if now < self._until:
            return self._until - now
        return PROBED_WITHIN if self._probing else 0.0

    def begin(self, now: float) -> bool:
        """A call is made. True where it is the one that tries: no other one is, until `released`."""
        if self._until is None:
            return False
        self._probing = self._probing or now >= self._until
        return self._probing

    def released(self) -> None:
        """The call that tried has ended, however it did."""
        self._probing = False

    def succeeded(self, now: float) -> bool:
        """An answer came. True where that closes it. One to a call from before it opened says nothing of now."""
        if self._until is None:
            self._failures.clear()
            return False
        if now < self._until:
            return False
        self._until = None
        self._failures.clear()
        return True

    def failed(self, now: float) -> bool:
        """A call failed. True where that opens it."""
        state = self.state(now)
        self._failures.append(now)
        many = len(self._failures) == self.rule.failures and now - self._failures[0] <= self.rule.within
        if state == "open" or not (many or state == "half-open"):
            return False
        self._until = now + self.rule.open
        return True
