"""Traces of calls and events that come over HTTP: the trace of who asks goes on, through gateway, worker and requests."""

from __future__ import annotations

import json
import signal
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cli_bench import Project, stand_in
from collector import Collector, SpanSeen
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context
from standin import StandIn

from dspex.bus import codecs
from dspex.bus.codecs import tracing
from dspex.bus.local.launch import free_port
from dspex.bus.message import new_id
from dspex.bus.records import CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.client.publish import headers_of

TRACE, ABOVE = "1af7651916cd43dd8448eb211c80319c", "c7ad6b7169203331"
PARENT = f"00-{TRACE}-{ABOVE}-01"
STATE = "congo=t61rcWkgMzE"
SETTINGS = """
topologies = ["triage.yaml"]
server.local = {{ port = -1 }}
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
pools.lightweight = {{ size = 1 }}
[http]
subjects = ["{u}.in"]
calls = {{ draft = "triage/draft", ask = "question -> answer" }}
"""
TOPOLOGY = """
dspex: 1
topology: triage
sources: {{ {u}.in: {{}} }}
nodes:
  draft: {{ from: {u}.in, predict: "text -> reply" }}
sinks: {{ {u}.out: {{ from: draft }} }}
"""


def posted(port: int, path: str, data: Mapping[str, Any], **headers: str) -> str:
    said = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(data).encode(), said)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SpanSeen]]:
    """All that is told of three calls and an event, of which the first two and the event come with a trace."""
    app, port = f"t{uuid.uuid4().hex[:12]}", free_port(None)
    with Collector() as collector, stand_in(StandIn()) as url:
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        project = Project(tmp_path_factory.mktemp("project"), app, SETTINGS.format(url=url, u=app), **otel)
        project.write("triage.yaml", TOPOLOGY.format(u=app))
        with project.start("run") as run, project.start("gateway", "--bind", f"127.0.0.1:{port}") as gateway:
            run.until("ready in")
            gateway.until("gateway")
            posted(port, "/v1/call/draft", {"text": "one"}, traceparent=PARENT, tracestate=STATE)
            posted(port, "/v1/call/ask", {"question": "two"}, traceparent=PARENT, Accept="text/event-stream")
            posted(port, "/v1/call/ask", {"question": "three"})
            posted(port, f"/v1/publish/{app}.in", {"text": "four"}, traceparent=PARENT, tracestate=STATE)
            collector.until(3, "ask ")
            collector.until(4, "call ")
            collector.until(4, "chat ")
            assert gateway.end(signal.SIGTERM) in (0, 15)
            assert run.end(signal.SIGTERM) == 0
        yield collector.spans


def named(spans: list[SpanSeen], name: str) -> list[SpanSeen]:
    return [span for span in spans if span.name.startswith(name)]


@pytest.mark.long
def test_a_call_over_http_goes_on_in_the_trace_of_who_asks(spans: list[SpanSeen]) -> None:
    ours = [span for span in spans if span.trace == TRACE]
    asked = named(ours, "ask ")
    assert [span.parent for span in asked] == [ABOVE, ABOVE]
    assert {span.service for span in asked} == {"dspex-gateway"}
    for ask in asked:  # a plain one, and a stream
        (call,) = [span for span in named(ours, "call ") if span.parent == ask.span]
        (chat,) = [span for span in named(ours, "chat ") if span.parent == call.span]
        assert (call.service, chat.service) == ("dspex-worker", "dspex-worker")
        assert chat.attributes["gen_ai.usage.input_tokens"] > 0


def test_an_event_over_http_is_a_run_in_the_trace_of_who_published_it(spans: list[SpanSeen]) -> None:
    (event,) = [span for span in named(spans, "process ") if span.trace == TRACE]
    (call,) = [span for span in named(spans, "call draft") if span.parent == event.span]
    assert event.parent == ABOVE
    assert [span.parent for span in named(spans, "chat ") if span.parent == call.span] == [call.span]


def test_a_call_without_a_trace_is_one_of_its_own(spans: list[SpanSeen]) -> None:
    (ask,) = [span for span in named(spans, "ask ") if span.trace != TRACE]
    assert (ask.parent, ask.trace) == ("", str(ask.attributes["dspex.call"]).replace("-", ""))
    (call,) = [span for span in named(spans, "call ") if span.trace == ask.trace]
    assert call.parent == ask.span


def test_what_who_asks_keeps_in_its_tracestate_is_told_by_every_process(spans: list[SpanSeen]) -> None:
    with_it = [span for span in spans if span.state == STATE]
    assert sorted(span.name.split()[0] for span in with_it) == ["ask", "call", "call", "chat", "chat", "process"]
    assert {span.state for span in spans} == {STATE, ""}  # that of a call without it has none


def test_no_step_has_two_spans(spans: list[SpanSeen]) -> None:
    assert len({span.span for span in spans}) == len(spans)


def test_a_program_that_has_a_span_open_publishes_in_its_trace() -> None:
    tracer = TracerProvider().get_tracer("a program's own")
    above = SpanContext(int(TRACE, 16), int(ABOVE, 16), True, TraceFlags(1), TraceState([("congo", "a")]))
    with tracer.start_as_current_span("its own", set_span_in_context(NonRecordingSpan(above))) as span:
        headers = headers_of(new_id(), None, None, None, None, codecs.JSON)
        said = headers["traceparent"]
        assert headers["tracestate"] == "congo=a"
        with tracing.within(PARENT):  # what a request says comes first
            assert headers_of(new_id(), None, None, None, None, codecs.JSON)["traceparent"] == PARENT
    context = span.get_span_context()
    assert tracing.trace_of(said, "run") == (context.trace_id, context.span_id, True, "")
    assert "traceparent" not in headers_of(new_id(), None, None, None, None, codecs.JSON)
    own = {"traceparent": PARENT}
    assert headers_of(new_id(), None, None, None, own, codecs.JSON)["traceparent"] == PARENT


@pytest.mark.parametrize("said", ["", "00-x", f"00-{'0' * 32}-{ABOVE}-01", f"00-{TRACE}-{'0' * 16}-01", PARENT + "é" * 5000])
def test_what_is_no_trace_begins_one(said: str) -> None:
    run = uuid.uuid4()
    assert tracing.trace_of(said, str(run)) == (run.int, 0, None, "")


def test_a_request_without_a_trace_is_packed_as_it_was_before_there_were_any() -> None:
    work = CallRequest("c", 1, 1, "", "", CallSpec("predict", "a -> b", ""), {}, "c")
    assert b"trace" not in work.pack().replace(b"traceback", b"")
    assert CallRequest.unpack(work.pack()).trace is None
