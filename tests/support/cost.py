"""Whether work grows in proportion to its input: by the ratio of two times, so that a busy machine makes no difference."""

from __future__ import annotations

import time
from collections.abc import Callable

TIMES = 8  # the larger input; quadratic work takes 64 times as long
MOST = 32
_NOISE = 0.05  # seconds that a measurement may be wrong


def grows_linearly(work: Callable[[int], object], size: int) -> bool:
    """Whether the work for 8 times the size takes at most 32 times the processor's time. The best of three tries counts."""
    return any(_seconds(work, TIMES * size) <= MOST * _seconds(work, size) + _NOISE for _ in range(3))


def _seconds(work: Callable[[int], object], size: int) -> float:
    started = time.process_time()
    work(size)
    return time.process_time() - started
