"""Counters that cost an addition: OpenTelemetry asks for them when it exports, and not each time that something is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from opentelemetry.metrics import CallbackOptions, Meter, Observation

Observe: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]


class Sum:
    """A counter.

    Args:
        name, unit, about: as OpenTelemetry has them. labels: names of its attributes.
    """

    def __init__(self, meter: Meter, name: str, unit: str, about: str, labels: Sequence[str]) -> None:
        self._labels, self._sums = labels, dict[tuple[str, ...], float]()
        meter.create_observable_counter(name, [self._observe], unit, about)

    def add(self, value: float, *labels: str) -> None:
        """Count so much more. `labels`: values of its attributes."""
        self._sums[labels] = self._sums.get(labels, 0) + value

    def _observe(self, _: CallbackOptions) -> Iterator[Observation]:
        for labels, value in list(self._sums.items()):  # a copy: it is asked in a thread of its own
            yield Observation(value, dict(zip(self._labels, labels, strict=True)))
