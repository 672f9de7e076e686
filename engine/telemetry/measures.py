"""Metrics of this process, and of the application as its engines and pools report it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from dspex.bus.errors import DecodeError
from dspex.bus.records import CallRecord, Usage
from dspex.engine.runtime.arrival import Answered, Due, Note, What
from dspex.engine.runtime.failure import Failure
from dspex.engine.runtime.walk.timing import NodeTime, NodeTimes
from dspex.engine.telemetry.gauges import GAUGES, GaugeRows, Shown
from dspex.engine.telemetry.sums import Observe, Sum

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Bounds of histograms of times."""
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0)


HEARD = ("commit", "noted", "worker_lost")
"""What happens that is measured."""


class Measures:
    """Counts what happens in this process.

    Args:
        meter: of OpenTelemetry.
        status: what is known of the application now; None before anybody looked.
        times: what operators take in this process; None: that is not measured.
    """

    def __init__(self, meter: Meter, status: Callable[[], Shown | None], times: NodeTimes | None = None) -> None:
        self._status = status
        stage, node = ("topology", "stage"), ("topology", "node")
        self._commits = Sum(meter, "dspex.stage.commits", "{commit}", "Commits of partitions.", stage)
        self._consumed = Sum(meter, "messaging.client.consumed.messages", "{message}", "Arrivals that were taken.", stage)
        self._sent = Sum(meter, "messaging.client.sent.messages", "{message}", "Messages that were stored.", stage)
        self._committing = _histogram(meter, "messaging.process.duration", "From when a commit was sent until it was stored.")
        given_up = (*node, "reason")
        self._letters = Sum(meter, "dspex.dead_letters", "{letter}", "Events that could not be processed.", given_up)
        self._calls = _histogram(meter, "dspex.call.duration", "Of the last attempt at a call, as its worker measured it.")
        self._model = _histogram(meter, "gen_ai.client.operation.duration", "The same, by the model that answered.")
        self._cost = Sum(meter, "dspex.call.cost", "USD", "What calls cost.", node)
        tried = (*node, "route", "reason")
        self._routes = Sum(meter, "dspex.route.decisions", "{decision}", "Who answered, and who was tried.", tried)
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Tokens of a call.", explicit_bucket_boundaries_advisory=TOKENS
        )
        about = "Worker processes that ended, or were ended."
        self._ended = Sum(meter, "dspex.worker.ended", "{process}", about, ("pool",))
        for name, unit, about, rows in GAUGES:
            meter.create_observable_gauge(name, [self._observed(rows)], unit, about)
        if times is not None:
            for name, unit, about, of in TIMES:
                meter.create_observable_counter(name, [_taken(times, of)], unit, about)

    def _observed(self, rows: GaugeRows) -> Observe:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            status = self._status()
            for value, labels in rows(status) if status is not None else ():
                if value is not None:
                    yield Observation(value, labels)

        return observe

    def __call__(self, name: str, facts: Mapping[str, Any]) -> None:
        """Hear what happens; see `telemetry.HAPPENINGS`."""
        if name == "commit":
            where = facts["topology"], facts["stage"]
            self._commits.add(1, *where)
            self._consumed.add(facts["arrivals"], *where)
            self._sent.add(facts["messages"], *where)
            self._committing.record(facts["seconds"], {"topology": where[0], "stage": where[1]})
        elif name == "noted":
            for what, notes, failure in facts["told"]:
                self._noted(facts["topology"], what, notes, failure)
        elif name == "worker_lost":
            self._ended.add(1, facts["pool"])

    def _noted(self, topology: str, what: What, notes: Sequence[Note], failure: Failure | None) -> None:
        what = what.what if isinstance(what, Due) else what
        if failure is not None and "dead_letter" in notes:
            self._letters.add(1, topology, failure.node, type(failure.error).__name__)
        if isinstance(what, Answered) and "record" in notes:
            self._call(what.record)

    def _call(self, record: CallRecord) -> None:
        node = {"topology": record.topology, "node": record.node}
        said = {**node, "route": record.route}
        if record.error is not None:
            said["error.type"] = str(record.error.get("type", ""))
        self._calls.record(record.elapsed, said)
        self._routes.add(1, record.topology, record.node, record.route, "answered")
        for one in record.routing:
            self._routes.add(1, record.topology, record.node, one.lm, one.why)
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
            self._cost.add(used.cost, record.topology, record.node)


TIMES: tuple[tuple[str, str, str, Callable[[NodeTime], float]], ...] = (
    ("dspex.node.duration", "s", "What an operator took in the engine, all events together.", lambda one: one.seconds),
    ("dspex.node.events", "{event}", "Events that came to an operator.", lambda one: one.handled),
)


def _taken(times: NodeTimes, of: Callable[[NodeTime], float]) -> Observe:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for one in times.report():
            yield Observation(of(one), {"topology": one.topology, "node": one.node})

    return observe


def _histogram(meter: Meter, name: str, about: str) -> Any:
    return meter.create_histogram(name, "s", about, explicit_bucket_boundaries_advisory=SECONDS)
