"""The dashboard and the alert rules in deploy/: they parse, and ask for nothing that dspex does not export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, generate_latest

from dspex.bus.records import CallRecord, Usage
from dspex.engine.runtime.arrival import Answered
from dspex.engine.runtime.failure import Failure
from dspex.engine.runtime.walk.timing import NodeTimes
from dspex.engine.telemetry.measures import Measures
from dspex.errors import ProgramError

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
STATUS: dict[str, Any] = {
    "stages": [
        {"topology": "t", "stage": "s", "lag": 1, "oldest": 2.0, "put_off": 0, "unowned": 0, "calls": {"lightweight": 1}}
    ],
    "engines": [{"engine": "e", "alive": True, "health": "ok"}],
    "pools": [{"pool": "p", "id": "x", "busy": 1, "slots": 4, "ready": 2, "waiting": 0, "children": [{"pid": 3, "rss": 5}]}],
    "letters": [{"topology": "t", "node": "n", "reason": "r", "count": 1}],
    "server": {"bytes": 3},
}


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """The series that Prometheus sees when all has happened once: by name, the labels."""
    provider = MeterProvider([PrometheusMetricReader()], shutdown_on_exit=False)
    times, where = NodeTimes(), {"topology": "t", "stage": "s", "partition": 0}
    times.within(("t", "n"), lambda: None, 1)
    measures = Measures(provider.get_meter("dspex"), lambda: STATUS, times)
    used = vars(Usage(input_tokens=3, output_tokens=4, cost=0.1, requests=1))
    record = CallRecord("c", 1, 1, "t", "n", outputs={}, lm="main", elapsed=0.1, usage=used)
    failed = Failure(ProgramError("no"), "n")
    told = [(Answered(record, None), ("record",), None), (Answered(record, None), ("record", "dead_letter"), failed)]
    measures("noted", {**where, "told": told})
    measures("commit", {**where, "arrivals": 1, "messages": 1, "seconds": 0.1})
    measures("worker_lost", {"pool": "p"})
    found: dict[str, set[str]] = {}
    for line in generate_latest(REGISTRY).decode().splitlines():
        if (series := re.match(r"(\w+)(?:\{(.*)\})? ", line)) and not line.startswith("#"):
            found.setdefault(series[1], set()).update(re.findall(r'(\w+)="', series[2] or ""))
    provider.shutdown()
    return found


def expressions() -> Iterator[tuple[str, str]]:
    board = json.loads((MONITORING / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m").replace("$topology", ".*")
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("what", "expression"), [*expressions()])
def test_what_is_asked_for_is_exported(what: str, expression: str, exported: dict[str, set[str]]) -> None:
    selectors: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    assert selectors
    for selector in selectors:
        assert selector.name in exported, what
        for matcher in selector.matchers.matchers:
            assert matcher.name in exported[selector.name], what
    labels = set[str]().union(*(exported[selector.name] for selector in selectors))
    asked = {label for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in group.split(", ")}
    assert asked <= labels, what


def test_what_the_dashboard_offers_to_choose_from_is_exported(exported: dict[str, set[str]]) -> None:
    variables = json.loads((MONITORING / "grafana.json").read_text())["templating"]["list"]
    asked = [one for one in variables if one["type"] == "query"]
    assert asked
    for one in asked:
        found = re.fullmatch(
            r"label_values\((\w+), (\w+)\)", one["query"] if isinstance(one["query"], str) else one["query"]["query"]
        )
        assert found is not None
        assert found[2] in exported[found[1]]


def test_each_alert_says_what_to_do_and_panels_do_not_overlap() -> None:
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["description"].endswith(".")
    taken = set[tuple[int, int]]()
    for panel in json.loads((MONITORING / "grafana.json").read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
