"""Kills and replays make no second span of a step: a worker dies in a call, then all of it, and what was done is done again."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
from cli_bench import Project, stand_in
from collector import Collector
from standin import StandIn
from waiting import eventually

SETTINGS = """
topologies = ["triage.yaml"]
server.local = {{ port = -1 }}
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
pools.lightweight = {{ size = 1 }}
"""
TOPOLOGY = """
dspex: 1
topology: triage
sources: {{ {u}.in: {{}} }}
nodes:
  draft: {{ from: {u}.in, predict: "text -> reply", retry: {{ attempts: 5, backoff: 10ms }} }}
  by_text: {{ from: draft, key_by: text }}
  long: {{ from: by_text, set: {{ size: "len(reply)" }} }}
sinks: {{ {u}.out: {{ from: long }} }}
"""


def asked(project: Project, text: str) -> str:
    said = project.here("--json", "publish", f"{project.u}.in", f"text={text}")
    assert said.code == 0, said.err
    return str(said.objects()[0]["run"])


def children(project: Project) -> list[int]:
    pools: list[dict[str, Any]] = project.here("--json", "status").objects()[0]["pools"]
    return [child["pid"] for pool in pools if pool["pool"] == "lightweight" for child in pool.get("children", ())]


@pytest.mark.long
def test_a_worker_and_an_engine_that_are_killed_and_a_replay_leave_one_span_of_each_step(tmp_path: Path) -> None:
    model = StandIn()
    app = f"t{uuid.uuid4().hex[:12]}"
    with Collector() as collector, stand_in(model) as url:
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        project = Project(tmp_path, app, SETTINGS.format(url=url), **otel)
        project.write("triage.yaml", TOPOLOGY.format(u=app))
        runs: list[str] = []
        with project.start("run") as run:
            run.until("ready in")
            runs.append(asked(project, "standin:hangx1 the worker dies"))
            eventually(lambda: model.running == 1)
            for pid in children(project):
                os.kill(pid, signal.SIGKILL)
            collector.until(2, "process ")  # the hop is behind the call, which another worker has answered
            runs.append(asked(project, "standin:hangx1 all of it dies"))
            eventually(lambda: model.running == 1)
            collector.until(3, "process ")  # a process that is killed loses the spans that it has not sent
            run.end(signal.SIGKILL)
        with project.start("run") as again:
            again.until("ready in")
            collector.until(4, "process ")
            collector.until(2, "chat ")
            for one in runs:
                said = project.here("--json", "replay", one)
                assert said.objects()[0]["same"] is True, said.err
            assert again.end(signal.SIGTERM) == 0
    spans = collector.spans
    assert len({span.span for span in spans}) == len(spans)
    traces = {span.trace for span in spans}
    assert len(traces) == len(runs)
    for trace in traces:
        ours = [span for span in spans if span.trace == trace]
        hop, event = sorted((s for s in ours if s.name.startswith("process ")), key=lambda span: span.parent == "")
        (call,) = [span for span in ours if span.name == "call draft"]
        chats = [span for span in ours if span.name.startswith("chat ")]
        assert (event.parent, call.parent, hop.parent) == ("", event.span, call.span)
        assert {chat.parent for chat in chats} == {call.span}
