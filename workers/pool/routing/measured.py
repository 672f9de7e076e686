"""What was measured of a profile lately: how long its answers take, and how often there is none."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Final

LAST: Final = 128  # outcomes that count: a few seconds of a busy profile
ENOUGH: Final = 10  # of them, below which nothing is said


class Measured:
    """The last calls of one profile.

    Attributes:
        calls, errors: since the pool's process was started.
        error_rate: among the last outcomes, 0 to 1; 0 while they are too few.
        p50: seconds that half of the last answers took at most; None while they are too few.
    """

    def __init__(self) -> None:
        self.calls = self.errors = 0
        self.error_rate = 0.0
        self.p50: float | None = None
        self._outcomes: deque[float | None] = deque()
        self._failed = 0  # of these
        self._sorted: list[float] = []  # the others

    def add(self, seconds: float | None) -> None:
        """One more outcome. `seconds`: until the answer; None: there was none."""
        self.calls += 1
        self._outcomes.append(seconds)
        if seconds is None:
            self.errors += 1
            self._failed += 1
        else:
            insort(self._sorted, seconds)
        if len(self._outcomes) > LAST:
            oldest = self._outcomes.popleft()
            if oldest is None:
                self._failed -= 1
            else:
                del self._sorted[bisect_left(self._sorted, oldest)]
        if (count := len(self._outcomes)) >= ENOUGH:
            self.error_rate = self._failed / count
            middle = self._sorted
            self.p50 = middle[len(middle) // 2] if len(middle) >= ENOUGH else None

    @property
    def p95(self) -> float | None:
        return self.percentile(95)

    def percentile(self, percent: int) -> float | None:
        """Seconds that so many percent of the last answers took at most; None while they are too few."""
        count = len(self._sorted)
        return self._sorted[min(count - 1, count * percent // 100)] if count >= ENOUGH else None
