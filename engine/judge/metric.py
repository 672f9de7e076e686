"""How well a run ends: its outputs beside what they should be, as a number."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from statistics import fmean
from typing import Any, Final, TypeAlias

from dspex.bus.errors import ConfigError, DataError
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.client.runs.diff import NOTHING
from dspex.engine.client.runs.tree import Happening
from dspex.operators.native.metrics.metrics import METRICS

Metric: TypeAlias = Callable[[Any, Any], Any]
"""`fn(expected, actual)`: a number, the more the better; it may be a coroutine function."""
JSON: Final = "json_match"  # the metric that compares any values


class MetricFailed(Exception):
    """A metric raised, or gave no number."""


def named(metric: str | Metric) -> tuple[str, Metric]:
    """A metric and its name: one of dspex.metrics, `pkg.module:function`, or a function. Raises ConfigError (DX105)."""
    if callable(metric):
        return getattr(metric, "__name__", "metric"), metric
    module, colon, attribute = metric.partition(":")
    if not colon:
        if metric not in METRICS:
            fix = did_you_mean(metric, sorted(METRICS), "one of dspex.metrics, or pkg.module:function")
            raise ConfigError(f"there is no metric {metric!r}", code="DX105", fix=fix)
        return metric, _texts(metric)
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        why = f"the metric {metric!r} cannot be imported: {error}"
        raise ConfigError(why, code="DX105", fix="name a function of a module: pkg.module:function") from error
    if not callable(found):
        raise ConfigError(f"{metric} is no function", code="DX105", fix="name a function of a module: pkg.module:function")
    return metric, found


def _texts(name: str) -> Metric:
    """A metric of dspex.metrics, for values of any kind: what is no text is right or wrong."""
    score = METRICS[name]

    def of(expected: Any, actual: Any) -> float:
        several = isinstance(expected, list) and expected and all(isinstance(one, str) for one in expected)
        if name == JSON or (isinstance(actual, str) and (isinstance(expected, str) or several)):
            return score(actual, expected)
        return float(actual == expected)

    return of


@dataclass(frozen=True)
class Judged:
    """What is compared with what.

    Attributes:
        name, metric: see Metric.
        label: the field of the source event that says what is right; None: the recorded outputs do.
        fields: of outputs, which are compared; none: of the metrics of dspex all that differ from the source event, and of a
            function the whole data.
        sink: only what is sent there; None: all outputs.
    """

    name: str
    metric: Metric
    label: str | None = None
    fields: tuple[str, ...] = ()
    sink: str | None = None

    @classmethod
    def of(cls, metric: str | Metric, label: str | None, fields: tuple[str, ...], sink: str | None) -> Judged:
        """Raises ConfigError."""
        if label is not None and len(fields) > 1:
            raise ConfigError("one label says what one field is", code="DX105", fix="name one --field")
        found = cls(*named(metric), label, fields, sink)
        if label is not None and not fields and found.name in METRICS:  # outputs often carry the label along: it equals itself
            why = f"what is the {label} of an event is to be compared with which field of outputs?"
            raise ConfigError(why, code="DX105", fix="name it: --field NAME")
        return found

    async def score(self, expected: Any, actual: Any) -> float:
        """By the metric, in a thread: what users write may wait. Raises MetricFailed."""
        try:
            found = await asyncio.to_thread(self.metric, expected, actual)
            value = float(await found if inspect.isawaitable(found) else found)
        except DataError as error:
            raise MetricFailed(f"the metric {self.name}: {error}") from error
        except Exception as error:  # a user's function may raise anything
            raise MetricFailed(f"the metric {self.name} raised {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise MetricFailed(f"the metric {self.name} gave {value}")
        return value

    async def pair(self, expected: Any, actual: Any, event: Any) -> float:
        """Of one output. `expected`: the recorded one, or the label. `event`: data of the source event."""
        if actual is NOTHING:
            return 0.0
        fields = self._fields(expected, event)
        if not fields or self.name not in METRICS:
            return await self.score(_part(expected, fields) if self.label is None else expected, _part(actual, fields))
        scores = []
        for field in fields:
            right = expected if self.label is not None else _field(expected, field)
            given = _field(actual, field)
            scores.append(await self.score(right, given) if given is not NOTHING else float(right is NOTHING))
        return fmean(scores)

    def _fields(self, expected: Any, event: Any) -> tuple[str, ...]:
        if self.fields or self.name not in METRICS:
            return self.fields
        if not isinstance(expected, Mapping):
            return ()
        known = event if isinstance(event, Mapping) else {}
        return tuple(name for name, value in expected.items() if known.get(name, NOTHING) != value) or (*expected,)

    def outputs(self, root: Happening) -> dict[str, Any]:
        """The data of what a run sent to sinks, by subject and number there."""
        found, numbers = dict[str, Any](), Counter[str]()
        for one in root:
            if one.kind == "output" and self.sink in (None, one.node):
                found[f"{one.node}#{numbers[one.node]}"] = one.data
                numbers[one.node] += 1
        return found

    @property
    def field(self) -> str | None:
        """Which field of outputs a label says something of; None: of all of them."""
        return next(iter(self._fields(None, None)), None)

    def labelled(self, outputs: Mapping[str, Any]) -> Iterator[Any]:
        """Those outputs that a label says something of."""
        fields = self._fields(None, None)
        for data in outputs.values():
            if not fields or (isinstance(data, Mapping) and any(field in data for field in fields)):
                yield data


def _field(data: Any, name: str) -> Any:
    return data.get(name, NOTHING) if isinstance(data, Mapping) else NOTHING


def _part(data: Any, fields: tuple[str, ...]) -> Any:
    """Of data one field, or some as a dict; all of it where none is named."""
    if not fields:
        return data
    if len(fields) == 1:
        found = _field(data, fields[0])
        return None if found is NOTHING else found
    return {name: _field(data, name) for name in fields if _field(data, name) is not NOTHING}
