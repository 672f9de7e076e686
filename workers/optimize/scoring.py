"""The metric of a job: how well a prediction answers a row, and how far the job is."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, SupportsFloat

from dspex.bus.errors import InvalidOutput, ProgramError
from dspex.bus.serving.programs.optimizers import PERFECT, is_ref_of_metric
from dspex.operators.native.metrics.metrics import METRICS
from dspex.workers.answerers.attempt import plain, short
from dspex.workers.answerers.refs import Refs
from dspex.workers.journal.requests import Requests, StopCall

_SAY_EVERY: Final = 1.0  # seconds between two reports


class JobProgress:
    """Says how far a job is: `scoring 12/96`. Told in any thread.

    Args:
        say: takes the text. total: programs that will have run at the end, about.
    """

    def __init__(self, say: Callable[[str], None], total: int) -> None:
        self._say, self._total, self._lock = say, total, threading.Lock()
        self._phase, self._done, self._said = "", 0, 0.0

    def enter(self, phase: str, done: int) -> None:
        """Something else begins, behind which `done` programs have run."""
        with self._lock:
            self._phase, self._done = phase, done
        self._tell()

    def ran(self) -> None:
        """A program has run, and its answer has a score."""
        with self._lock:
            self._done = min(self._done + 1, self._total)
            now = time.monotonic()
            if now - self._said < _SAY_EVERY:
                return
            self._said = now
        self._tell()

    def _tell(self) -> None:
        self._say(f"{self._phase} {self._done}/{self._total}")


class JobMetric:
    """A metric as DSPy's optimizers call it: (example, prediction, trace).

    Raises StopCall where it fails: an optimizer takes an Exception for a bad answer, and goes on with a score that means
    nothing.
    """

    def __init__(self, metric: str, outputs: tuple[str, ...], refs: Refs, requests: Requests, progress: JobProgress) -> None:
        """Raises ProgramError where the pool does not allow the ref, or has no such metric."""
        self.__name__, self._outputs, self._requests, self._progress = metric.rpartition(":")[2], outputs, requests, progress
        self._own: Callable[..., Any] | None = refs.load(metric) if is_ref_of_metric(metric) else None
        if self._own is None and metric not in METRICS:
            raise ProgramError(f"there is no metric {metric!r}", fix="upgrade the workers: pip install -U dspex")
        self._metric = METRICS.get(metric, lambda actual, expected: 0.0)
        self._ref = metric

    def __call__(self, example: Any, prediction: Any, trace: Any = None, *more: object) -> float | bool:
        if self._requests.ending is not None:
            raise StopCall(self._requests.ending)
        try:
            score = self._named(example, prediction) if self._own is None else self._own(example, prediction, trace)
        except Exception as error:  # noqa: BLE001  a user's function may raise anything
            said = f"the metric {self._ref} raised {type(error).__name__}: {short(error)}, for {_shown(example)}"
            self._requests.end(ProgramError(said, fix="correct the metric, and submit the job anew"), error)
        found = self._number(score, example)
        self._progress.ran()
        return found >= PERFECT if self._own is None and trace is not None else found

    def _named(self, example: Any, prediction: Any) -> float:
        """The mean over the outputs that the row has."""
        names = [name for name in self._outputs if name in example]
        return sum(self._score(getattr(prediction, name, None), example[name]) for name in names) / len(names)

    def _score(self, actual: object, expected: object) -> float:
        """By the metric where both are texts; anything else is right or wrong."""
        with suppress(InvalidOutput):
            actual = plain("answer", actual)
        if isinstance(actual, str) and isinstance(expected, str):
            return self._metric(actual, expected)
        return float(actual == expected)

    def _number(self, score: Any, example: Any) -> float:
        found = getattr(score, "score", score)
        try:
            number = float(found) if isinstance(found, SupportsFloat) else math.nan  # NumPy's numbers among them
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):  # the mean of all rows would be none, either
            gave = found if isinstance(found, float) else type(found).__name__
            said = f"the metric {self._ref} gave {gave} for {_shown(example)}, and not a number or a bool"
            self._requests.end(ProgramError(said, fix="correct the metric, and submit the job anew"))
        return number


def _shown(example: Mapping[str, Any]) -> str:
    return short(dict(example))
