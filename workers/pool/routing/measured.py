"""What was measured of a profile lately: how long its answers take, and how often there is none."""

from __future__ import annotations

from collections import deque
from typing import Final

LAST: Final = 128  # outcomes that count: a few seconds of a busy profile
ENOUGH: Final = 10  # of them, below which nothing is said
_NEW: Final = 4  # outcomes after which figures are computed anew: sorting them at each call would cost more than all else


class Measured:
    """The last calls of one profile.

    Attributes:
        calls, errors: since the pool's process was started.
        error_rate: among the last outcomes, 0 to 1; 0 while they are too few.
    """

    def __init__(self) -> None:
        self.calls = self.errors = 0
        self.error_rate = 0.0
        self._seconds: deque[float] = deque(maxlen=LAST)
        self._failed: deque[bool] = deque(maxlen=LAST)
        self._sorted: list[float] = []
        self._new = 0

    @property
    def p50(self) -> float | None:
        return self.percentile(50)

    @property
    def p95(self) -> float | None:
        return self.percentile(95)

    def percentile(self, percent: int) -> float | None:
        """Seconds that so many percent of the last answers took at most; None while they are too few."""
        count = len(self._sorted)
        return self._sorted[min(count - 1, count * percent // 100)] if count else None

    def add(self, seconds: float | None) -> None:
        """One more outcome. `seconds`: until the answer; None: there was none."""
        self.calls += 1
        self.errors += seconds is None
        self._failed.append(seconds is None)
        if seconds is not None:
            self._seconds.append(seconds)
        self._new += 1
        if self._new >= _NEW:
            self._compute()

    def _compute(self) -> None:
        self._new = 0
        if len(self._failed) >= ENOUGH:
            self.error_rate = sum(self._failed) / len(self._failed)
        if len(self._seconds) >= ENOUGH:
            self._sorted = sorted(self._seconds)
