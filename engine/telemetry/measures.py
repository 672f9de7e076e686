"""Metrics of this process, and of the application as its engines and pools report it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from dspex.bus.errors import DecodeError
from dspex.bus.records import CallRecord, Usage
from dspex.engine.runtime.arrival import Answered, Due
from dspex.engine.runtime.walk.timing import NodeTime, NodeTimes
from dspex.engine.telemetry.gauges import GAUGES, GaugeRows, Shown
from dspex.engine.telemetry.taken import DurableArrivals, HandledArrival

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Bounds of histograms of times."""
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0)


class Measures:
    """Counts what happens in this process.

    Args:
        meter: of OpenTelemetry.
        status: what is known of the application now; None before anybody looked.
        times: what operators take in this process; None: that is not measured.
    """

    def __init__(self, meter: Meter, status: Callable[[], Shown | None], times: NodeTimes | None = None) -> None:
        self._status = status
        self._arrivals = DurableArrivals(self._durable)
        self._commits = meter.create_counter("dspex.stage.commits", "{commit}", "Commits of partitions.")
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Arrivals that were taken.")
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Messages that were stored.")
        self._committing = _histogram(meter, "messaging.process.duration", "From when a commit was sent until it was stored.")
        self._letters = meter.create_counter("dspex.dead_letters", "{letter}", "Events that could not be processed.")
        self._calls = _histogram(meter, "dspex.call.duration", "Of the last attempt at a call, as its worker measured it.")
        self._model = _histogram(meter, "gen_ai.client.operation.duration", "The same, by the model that answered.")
        self._cost = meter.create_counter("dspex.call.cost", "USD", "What calls cost.")
        self._routes = meter.create_counter("dspex.route.decisions", "{decision}", "Who answered, and who was tried.")
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens of a call.", explicit_bucket_boundaries_advisory=TOKENS
        )
        self._ended = meter.create_counter("dspex.worker.ended", "{process}", "Worker processes that ended, or were ended.")
        for name, unit, about, rows in GAUGES:
            meter.create_observable_gauge(name, [self._observed(rows)], unit, about)
        if times is not None:
            for name, unit, about, of in TIMES:
                meter.create_observable_counter(name, [_taken(times, of)], unit, about)

    def _observed(self, rows: GaugeRows) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            status = self._status()
            for value, labels in rows(status) if status is not None else ():
                if value is not None:
                    yield Observation(value, labels)

        return observe

    def __call__(self, name: str, facts: Mapping[str, Any]) -> None:
        """Hear what happens; see `telemetry.HAPPENINGS`."""
        self._arrivals(name, facts)
        if name == "commit":
            where = {"topology": facts["topology"], "stage": facts["stage"]}
            self._commits.add(1, where)
            self._consumed.add(facts["arrivals"], where)
            self._sent.add(facts["messages"], where)
            self._committing.record(facts["seconds"], where)
        elif name == "worker_lost":
            self._ended.add(1, {"pool": facts["pool"]})

    def _durable(self, taken: HandledArrival) -> None:
        what, effects = taken.arrival.what, taken.effects
        what = what.what if isinstance(what, Due) else what
        if effects.failure is not None and "dead_letter" in effects.notes:
            reason = type(effects.failure.error).__name__
            self._letters.add(1, {"topology": taken.partition[0], "node": effects.failure.node, "reason": reason})
        if isinstance(what, Answered) and "record" in effects.notes:
            self._call(what.record)

    def _call(self, record: CallRecord) -> None:
        node = {"topology": record.topology, "node": record.node}
        said = {**node, "route": record.route}
        if record.error is not None:
            said["error.type"] = str(record.error.get("type", ""))
        self._calls.record(record.elapsed, said)
        self._routes.add(1, {**node, "route": record.route, "reason": "answered"})
        for one in record.routing:
            self._routes.add(1, {**node, "route": one.lm, "reason": one.why})
        try:
            used = Usage.read(record.usage)
        except DecodeError:  # a worker wrote it
            return
        if record.lm and used.requests:
            model = {"gen_ai.operation.name": "chat", "gen_ai.request.model": record.lm}
            self._model.record(record.elapsed, model)
            self._tokens.record(used.input_tokens, {**model, "gen_ai.token.type": "input"})
            self._tokens.record(used.output_tokens, {**model, "gen_ai.token.type": "output"})
        if used.cost:
            self._cost.add(used.cost, node)


TIMES: tuple[tuple[str, str, str, Callable[[NodeTime], float]], ...] = (
    ("dspex.node.duration", "s", "What an operator took in the engine, all events together.", lambda one: one.seconds),
    ("dspex.node.events", "{event}", "Events that came to an operator.", lambda one: one.handled),
)


def _taken(times: NodeTimes, of: Callable[[NodeTime], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for one in times.report():
            yield Observation(of(one), {"topology": one.topology, "node": one.node})

    return observe


def _histogram(meter: Meter, name: str, about: str) -> Any:
    return meter.create_histogram(name, "s", about, explicit_bucket_boundaries_advisory=SECONDS)
