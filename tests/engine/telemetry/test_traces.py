"""Traces, as a collector gets them from real processes: every step is there once, below what caused it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_bench import CLASSIFY, Project, stand_in
from collector import Collector
from standin import StandIn

TOOL = {"next_thought": "I ask", "next_tool_name": "weather", "next_tool_args": {"city": "Bern"}}  # what an agent does next
SETTINGS = """
topologies = ["triage.yaml"]
server.local = {{ port = -1 }}
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
pools.lightweight = {{ size = 1, programs = ["tools:*"] }}
"""
TWO_CALLS = """
dspex: 1
topology: triage
sources: {{ {u}.in: {{}} }}
nodes:
  classify: {{ from: {u}.in, predict: "{signature}" }}
  by_intent: {{ from: classify, key_by: intent }}
  draft: {{ from: by_intent, predict: "text, intent -> reply" }}
sinks: {{ {u}.out: {{ from: draft }} }}
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


@pytest.fixture
def project(tmp_path: Path, unique: str, collector: Collector) -> Iterator[Project]:
    otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with stand_in(StandIn(answers=TOOL)) as url:
        made = Project(tmp_path, unique, SETTINGS.format(url=url), **otel)
        made.write("triage.yaml", TWO_CALLS.format(u=unique, signature=CLASSIFY))
        yield made


def test_each_hop_call_and_request_of_a_run_has_one_span_below_what_caused_it(project: Project, collector: Collector) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with project.start("run") as run:
        run.until("ready in")
        assert project.publish("text=my card was stolen", "--header", f"traceparent={parent}").code == 0
        calls = collector.until(2, "call ")
        assert run.end(signal.SIGTERM) == 0
    events, chats = collector.named("process "), collector.named("chat ")
    assert {span.trace for span in collector.spans} == {"0af7651916cd43dd8448eb211c80319c"}
    hop, first = sorted(events, key=lambda span: span.parent == "b7ad6b7169203331")
    classify, draft = sorted(calls, key=lambda span: span.name)
    assert (first.parent, first.name) == ("b7ad6b7169203331", f"process {project.input}")
    assert (classify.name, classify.parent) == ("call classify", first.span)
    assert hop.parent == classify.span
    assert (draft.name, draft.parent) == ("call draft", hop.span)
    assert [chat.parent for chat in chats] == [classify.span, draft.span]
    assert all(chat.attributes["gen_ai.usage.input_tokens"] > 0 for chat in chats)
    assert len({span.span for span in collector.spans}) == len(collector.spans) == 6


def test_a_run_without_a_traceparent_is_a_trace_of_its_own(project: Project, collector: Collector) -> None:
    with project.start("run") as run:
        run.until("ready in")
        said = project.publish("text=my card was stolen").objects()
        collector.until(2, "call ")
        assert run.end(signal.SIGTERM) == 0
    assert {span.trace for span in collector.spans} == {said[0]["run"].replace("-", "")}


def test_kills_make_no_second_span_of_a_step(project: Project, collector: Collector) -> None:
    with project.start("run") as run:
        run.until("ready in")
        for number in range(4):
            assert project.publish(f"text=my card {number} was stolen").code == 0
        collector.until(8, "call ")
        run.end(signal.SIGKILL)
    with project.start("run") as again:
        again.until("ready in")
        assert project.publish("text=my card was stolen again").code == 0
        collector.until(10, "call ")
        assert again.end(signal.SIGTERM) == 0
    assert len({span.span for span in collector.spans}) == len(collector.spans)
    assert len(collector.named("call classify")) == len(collector.named("call draft")) == 5


AGENT = """
dspex: 1
topology: agents
sources: {{ {u}.in: {{}} }}
nodes:
  helper: {{ from: {u}.in, react: "question -> answer", tools: ["tools:weather"], max_iters: 2 }}
sinks: {{ {u}.out: {{ from: helper }} }}
"""


def test_each_request_of_an_agent_has_a_span_and_each_use_of_a_tool(project: Project, collector: Collector) -> None:
    project.write("triage.yaml", AGENT.format(u=project.u))
    project.write("tools.py", "def weather(city: str) -> str:\n    return f'sunny in {city}'\n")
    with project.start("run") as run:
        run.until("ready in")
        assert project.here("publish", project.input, "question=weather in Bern?", "--wait", "120s").code == 0
        (agent,) = collector.until(1, "invoke_agent helper")
        assert run.end(signal.SIGTERM) == 0
    asked = [span for span in collector.spans if span.name.startswith(("chat ", "execute_tool "))]
    assert {span.parent for span in asked} == {agent.span}
    assert {span.service for span in asked} == {"dspex-worker"}
    assert (len(collector.named("chat ")), len(collector.named("execute_tool weather"))) == (3, 2)


def test_a_call_that_fails_says_so_in_its_span(project: Project, collector: Collector) -> None:
    with project.start("run") as run:
        run.until("ready in")
        assert project.publish("text=standin:nonsense").code == 1
        (call,) = collector.until(1, "call ")
        assert run.end(signal.SIGTERM) == 0
    assert call.failed
    assert call.attributes["error.type"] == "InvalidOutput"
