"""Prompts and answers in spans: where somebody asks for them, without what is redacted, and never of secret fields."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cli_bench import Project, stand_in
from collector import Collector, SpanSeen
from standin import StandIn

from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.keys.redaction import Redaction
from dspex.bus.serving.programs.exchanges import Exchange
from dspex.engine.telemetry.content import Content, SaidInCall

NUMBER = "DE4415000000"
SETTINGS = """
topologies = ["triage.yaml"]
server.local = {{ port = -1 }}
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
pools.lightweight = {{ size = 1, programs = ["tools:*"] }}
telemetry = {{ content = true, redact = ["*account", "hiding:shouts"], log = "info,dspex=debug" }}
"""
TOPOLOGY = """
dspex: 1
topology: triage
sources: {{ {u}.in: {{}}, {u}.ask: {{}} }}
nodes:
  draft: {{ from: {u}.in, predict: "account, text -> reply" }}
  helper: {{ from: {u}.ask, react: "question -> answer", tools: ["tools:balance"], max_iters: 1 }}
sinks: {{ {u}.out: {{ from: draft }}, {u}.said: {{ from: helper }} }}
"""
TOOL = {"next_thought": "I ask", "next_tool_name": "balance", "next_tool_args": {"account": NUMBER}}
TOOLS = "def balance(account: str) -> str:\n    return f'LOUD: {account} has 7'\n"
HIDING = "def shouts(text: str) -> str:\n    return text.replace('LOUD', 'quiet')\n"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[SpanSeen], list[Any], str]]:
    """The spans of an event and of an agent, what `runs show` has of the agent, and the log."""
    app = f"t{uuid.uuid4().hex[:12]}"
    with Collector() as collector, stand_in(StandIn(answers=TOOL)) as url:
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        project = Project(tmp_path_factory.mktemp("project"), app, SETTINGS.format(url=url), **otel)
        project.write("triage.yaml", TOPOLOGY.format(u=app))
        project.write("tools.py", TOOLS)
        project.write("hiding.py", HIDING)
        with project.start("run") as run:
            run.until("ready in")
            for subject, *data in (("in", f"account={NUMBER}", f"text=LOUD about {NUMBER}"), ("ask", "question=how much?")):
                said = project.here("--json", "publish", f"{app}.{subject}", *data, "--wait", "60s")
                assert said.code == 0, said.err
            shown = project.here("--json", "runs", "show", "@last", "--requests")
            collector.until(3, "chat ")
            collector.until(1, "execute_tool ")
            assert run.end(signal.SIGTERM) == 0
            log = run.errors()
        yield collector.spans, shown.objects(), log


def texts(span: SpanSeen, what: str) -> str:
    (message, *_) = json.loads(span.attributes[f"gen_ai.{what}"])
    parts = message.get("parts", [message])
    return "".join(part["content"] for part in parts)


def chats(spans: list[SpanSeen], call: str) -> list[SpanSeen]:
    (above,) = [span for span in spans if span.name == call]
    return [span for span in spans if span.parent == above.span]


@pytest.mark.long
def test_a_request_has_what_was_asked_and_said_by_the_conventions(told: tuple[list[SpanSeen], Any, str]) -> None:
    (chat,) = chats(told[0], "call draft")
    assert "[[ ## reply ## ]]" in texts(chat, "system_instructions")
    assert "about (redacted)" in texts(chat, "input.messages")
    (reply,) = json.loads(chat.attributes["gen_ai.output.messages"])
    assert (reply["role"], reply["finish_reason"]) == ("assistant", "stop")
    assert "[[ ## reply ## ]]" in texts(chat, "output.messages")


def test_each_request_of_an_agent_and_its_tools_have_theirs(told: tuple[list[SpanSeen], Any, str]) -> None:
    found = chats(told[0], "invoke_agent helper")
    assert all("gen_ai.input.messages" in span.attributes for span in found if span.name.startswith("chat "))
    (tool,) = [span for span in found if span.name == "execute_tool balance"]
    assert json.loads(tool.attributes["gen_ai.tool.call.arguments"])["account"] == "(redacted)"
    assert tool.attributes["gen_ai.tool.call.result"].startswith("quiet: ")


def test_what_is_redacted_is_in_no_span_of_a_call_whose_inputs_have_it_and_in_no_line(
    told: tuple[list[SpanSeen], Any, str],
) -> None:
    spans, _, log = told
    said = json.dumps([span.attributes for span in chats(spans, "call draft")])
    assert NUMBER not in said
    assert "LOUD" not in said
    lines = [json.loads(line) for line in log.splitlines() if '"gen_ai.input.messages"' in line]
    assert {line["logger"] for line in lines} == {"dspex.telemetry"}
    (chat,) = chats(spans, "call draft")
    (line,) = [line for line in lines if line["span_id"] == chat.span]
    assert (line["trace_id"], NUMBER in json.dumps(line)) == (chat.trace, False)


def exchanges(data: Any) -> Iterator[dict[str, Any]]:
    """All that is shown of requests, wherever it stands."""
    if isinstance(data, dict):
        yield from data.get("exchanges") or ()
    for one in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from exchanges(one)


def test_what_a_record_keeps_of_requests_is_redacted_before_it_is_stored(told: tuple[list[SpanSeen], Any, str]) -> None:
    tools = [one for one in exchanges(told[1]) if one["kind"] == "tool" and one["name"] == "balance"]
    assert tools
    assert {one["asked"]["account"] for one in tools} == {"(redacted)"}
    assert all(one["said"].startswith("quiet: ") for one in tools)


def told_of(secret: bool, redact: tuple[str, ...] = ()) -> Mapping[str, str]:
    spec = CallSpec("predict", "pin -> reply", "", fields={"pin": {"secret": True}} if secret else {})
    one = Exchange("model", "main", {"messages": [{"role": "user", "content": "it is 4711"}]}, "no")
    return Content(Redaction(redact)).of(SaidInCall(lambda: (spec, {"pin": "4711"}), one=one))


def test_a_call_with_a_secret_field_has_no_content() -> None:
    assert "4711" in told_of(secret=False)["gen_ai.input.messages"]
    assert told_of(secret=True) == {}


def test_where_nobody_can_say_what_was_asked_there_is_no_content() -> None:
    def unknown() -> tuple[CallSpec, dict[str, Any]]:
        raise ZeroDivisionError

    assert Content(Redaction(())).of(SaidInCall(unknown)) == {}


def test_a_function_that_fails_leaves_nothing_to_be_seen() -> None:
    assert json.loads(told_of(False, ("json:loads",))["gen_ai.input.messages"])[0]["parts"][0]["content"] == "(redacted)"


def test_images_are_only_named() -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:…"}}]
    one = Exchange("model", "main", [{"role": "user", "content": parts}], ["a", {"text": "b"}])
    spec = CallSpec("predict", "a -> b", "")
    found = Content(Redaction(())).of(SaidInCall(lambda: (spec, {}), one=one))
    (message,) = json.loads(found["gen_ai.input.messages"])
    assert message["parts"] == [{"type": "text", "content": "look"}, {"type": "image_url"}]
    replies = json.loads(found["gen_ai.output.messages"])
    assert [reply["parts"][0]["content"] for reply in replies] == ["a", "b"]
