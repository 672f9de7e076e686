"""Traces, as a collector gets them from real processes: every step is there once, below what caused it."""

from __future__ import annotations

import json
import signal
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_bench import CLASSIFY, Project, stand_in
from collector import Collector, SpanSeen
from standin import StandIn
from structlog.testing import capture_logs

from dspex import Context, Topology
from dspex.bus import telemetry
from dspex.engine.testing.driver import Driver

TRACE, ABOVE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # what an event comes with
STATE = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
TOOL = {"next_thought": "I ask", "next_tool_name": "weather", "next_tool_args": {"city": "Bern"}}  # what an agent does next
SETTINGS = """
topologies = ["triage.yaml", "agents.yaml"]
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
AGENT = """
dspex: 1
topology: agents
sources: {{ {u}.ask: {{}} }}
nodes:
  helper: {{ from: {u}.ask, react: "question -> answer", tools: ["tools:weather"], max_iters: 2 }}
sinks: {{ {u}.said: {{ from: helper }} }}
"""
TOOLS = """
import structlog

def weather(city: str) -> str:
    structlog.get_logger("tools").warning("a tool is used", city=city)
    return f"sunny in {city}"
"""


@contextmanager
def collected(folder: Path) -> Iterator[tuple[Project, Collector]]:
    """A project whose processes tell a collector."""
    app = f"t{uuid.uuid4().hex[:12]}"
    with Collector() as collector, stand_in(StandIn(answers=TOOL)) as url:
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        project = Project(folder, app, SETTINGS.format(url=url), **otel)
        project.write("triage.yaml", TWO_CALLS.format(u=app, signature=CLASSIFY))
        project.write("agents.yaml", AGENT.format(u=app))
        project.write("tools.py", TOOLS)
        yield project, collector


def published(project: Project, subject: str, *args: str, code: int = 0) -> str:
    """The trace of a run that has ended."""
    said = project.here("--json", "publish", f"{project.u}.{subject}", *args, "--wait", "60s")
    assert said.code == code, said.err
    return str(said.objects()[0]["run"]).replace("-", "")


@pytest.fixture(scope="module")
def logged() -> list[dict[str, Any]]:
    """What the tool has logged, once `traces` is there."""
    return []


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, logged: list[dict[str, Any]]) -> Mapping[str, list[SpanSeen]]:
    """All that four runs have told when the one process that ran them has ended: it costs three seconds of a core."""
    with collected(tmp_path_factory.mktemp("project")) as (project, collector):
        with project.start("run") as run:
            run.until("ready in")
            of = ("--header", f"traceparent=00-{TRACE}-{ABOVE}-01", "--header", f"tracestate={STATE}")
            published(project, "in", "text=my card was stolen", *of)
            traces = {
                "given": TRACE,
                "own": published(project, "in", "text=my card was stolen"),
                "agent": published(project, "ask", "question=weather in Bern?"),
                "failed": published(project, "in", "text=standin:nonsense", code=1),
            }
            collector.until(5, "call ")
            collector.until(1, "invoke_agent helper")
            assert run.end(signal.SIGTERM) == 0
            logged.extend(json.loads(line) for line in run.errors().splitlines() if "a tool is used" in line)
        found = defaultdict[str, list[SpanSeen]](list)
        names = {trace: name for name, trace in traces.items()}
        for span in collector.spans:
            found[names[span.trace]].append(span)
        return found


def named(spans: list[SpanSeen], name: str) -> list[SpanSeen]:
    return [span for span in spans if span.name.startswith(name)]


@pytest.mark.long
def test_each_hop_call_and_request_of_a_run_has_one_span_below_what_caused_it(traces: Mapping[str, list[SpanSeen]]) -> None:
    spans = traces["given"]
    hop, first = sorted(named(spans, "process "), key=lambda span: span.parent == ABOVE)
    classify, draft = sorted(named(spans, "call "), key=lambda span: span.name)
    chats = named(spans, "chat ")
    assert first.parent == ABOVE
    assert first.name.endswith(".in")
    assert (classify.name, classify.parent) == ("call classify", first.span)
    assert hop.parent == classify.span
    assert (draft.name, draft.parent) == ("call draft", hop.span)
    assert [chat.parent for chat in chats] == [classify.span, draft.span]
    assert all(chat.attributes["gen_ai.usage.input_tokens"] > 0 for chat in chats)
    assert len({span.span for span in spans}) == len(spans) == 6
    assert {span.state for span in spans} == {STATE}


def test_a_run_without_a_traceparent_is_a_trace_of_its_own(traces: Mapping[str, list[SpanSeen]]) -> None:
    assert len(named(traces["own"], "call ")) == 2
    assert len(traces["own"]) == 6


@pytest.mark.long
def test_kills_make_no_second_span_of_a_step(tmp_path: Path) -> None:
    with collected(tmp_path) as (project, collector):
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


def test_each_request_of_an_agent_has_a_span_and_each_use_of_a_tool(traces: Mapping[str, list[SpanSeen]]) -> None:
    spans = traces["agent"]
    (agent,) = named(spans, "invoke_agent helper")
    asked = [span for span in spans if span.name.startswith(("chat ", "execute_tool "))]
    assert {span.parent for span in asked} == {agent.span}
    assert {span.service for span in asked} == {"dspex-worker"}
    assert (len(named(spans, "chat ")), len(named(spans, "execute_tool weather"))) == (3, 2)


def test_prompts_and_answers_are_in_no_span_where_nobody_asks_for_them(traces: Mapping[str, list[SpanSeen]]) -> None:
    names = {name for spans in traces.values() for span in spans for name in span.attributes}
    assert "gen_ai.usage.input_tokens" in names
    assert not [name for name in names if ("messages" in name and name.startswith("gen_ai.")) or "tool.call" in name]


def test_what_a_tool_logs_says_in_which_span(traces: Mapping[str, list[SpanSeen]], logged: list[dict[str, Any]]) -> None:
    (agent,) = named(traces["agent"], "invoke_agent helper")
    assert {(line["trace_id"], line["span_id"]) for line in logged} == {(agent.trace, agent.span)}


def test_what_a_function_logs_says_in_which_span_where_somebody_listens() -> None:
    def seen(data: dict[str, Any], ctx: Context) -> dict[str, Any]:
        ctx.log.info("a function is called")
        return data

    topology = Topology("t")
    topology.source("in").map(seen).sink("out")
    for listens in (True, False):
        stop = telemetry.subscribe(lambda name, facts: None) if listens else lambda: None
        with Driver(topology) as driver:
            with capture_logs() as logs:
                run = driver.publish("in", {"n": 1})
            stop()
        (line,) = [line for line in logs if line["event"] == "a function is called"]
        assert line.get("trace_id") == (run.replace("-", "") if listens else None)
        assert len(line.get("span_id", "")) == (16 if listens else 0)


def test_a_call_that_fails_says_so_in_its_span(traces: Mapping[str, list[SpanSeen]]) -> None:
    (call,) = named(traces["failed"], "call ")
    assert call.failed
    assert call.attributes["error.type"] == "InvalidOutput"
