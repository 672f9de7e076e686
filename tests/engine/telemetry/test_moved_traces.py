"""Two engine processes: one takes its share from the other, and then all of it, because that is killed while calls are open."""

from __future__ import annotations

import signal
import uuid
from collections import defaultdict
from pathlib import Path

import pytest
from cli_bench import Project, stand_in
from collector import Collector, SpanSeen
from standin import StandIn
from waiting import eventually

SETTINGS = """
topologies = ["moved.yaml"]
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
pools.lightweight = {{ size = 1, slots = 32 }}
"""
TOPOLOGY = """
dspex: 1
topology: moved
sources: {{ {u}.in: {{ partitions: 4 }} }}
nodes:
  ask: {{ from: {u}.in, predict: "text -> reply" }}
  by_text: {{ from: ask, key_by: text }}
  sign: {{ from: by_text, predict: "reply -> signed" }}
sinks: {{ {u}.out: {{ from: sign }} }}
"""
SPANS = ["call ask", "call sign", "chat", "chat", "process", "process"]  # of each run


def publish_rows(project: Project, name: str, count: int) -> None:
    rows = "".join(f"standin:gate {name} {n}\n" for n in range(count))
    project.write(f"{name}.csv", f"text\n{rows}")
    done = project.here("publish", project.input, "-f", f"{name}.csv", "--key", "text")
    assert done.code == 0, done.err


def owners(project: Project) -> set[str]:
    stages = project.here("--json", "status").objects()[0]["stages"]
    return {owner for stage in stages for owner in stage["owners"]}


@pytest.mark.long
def test_a_step_has_one_span_whichever_of_two_engines_did_it(tmp_path: Path, nats_url: str) -> None:
    model, app = StandIn(), f"t{uuid.uuid4().hex[:12]}"
    with Collector() as collector, stand_in(model) as url:
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200", "NATS_URL": nats_url}
        project = Project(tmp_path, app, SETTINGS.format(url=url), **otel)
        project.write("moved.yaml", TOPOLOGY.format(u=app))
        with project.start("run") as first, project.start("run", "--pools", "none") as second:
            first.until("ready in")
            second.until("ready in")
            eventually(lambda: len(owners(project)) == 2)
            publish_rows(project, "one", 8)
            eventually(lambda: model.running == 8)
            collector.until(8, "process ")  # what is told when a process is killed, and not sent yet, is lost
            second.end(signal.SIGKILL)
            model.go_on()
            publish_rows(project, "two", 8)
            collector.until(16, "call sign")
            assert first.end(signal.SIGTERM) == 0
    traces = defaultdict[str, list[SpanSeen]](list)
    for span in collector.spans:
        traces[span.trace].append(span)
    assert len(traces) == 16
    for spans in traces.values():
        assert sorted(_kind(span) for span in spans) == SPANS
        by_id = {span.span: span for span in spans}
        assert len(by_id) == len(spans)
        chain = {_kind(span): _kind(by_id[span.parent]) for span in spans if span.parent}
        assert chain == {"call ask": "process", "process": "call ask", "call sign": "process", "chat": chain["chat"]}
        assert {_kind(by_id[span.parent]) for span in spans if _kind(span) == "chat"} == {"call ask", "call sign"}


def _kind(span: SpanSeen) -> str:
    return span.name if span.name.startswith("call ") else span.name.split()[0]
