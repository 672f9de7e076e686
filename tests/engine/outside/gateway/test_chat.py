"""Chat front ends: OpenAI's completions, AG-UI, the AI SDK, and a WebSocket."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from cli_bench import Project
from gateway_bench import as_
from standin import StandIn
from waiting import eventually
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

ASKED = [
    {"role": "system", "content": "ignored"},
    {"role": "user", "content": "My card was stolen"},
    {"role": "assistant", "content": "I am sorry"},
    {"role": "user", "content": [{"type": "text", "text": "What now?"}, {"type": "image_url", "image_url": {"url": "x"}}]},
]


def lines(said: httpx.Response) -> list[Any]:
    found = [line.partition(":")[2].strip() for line in said.text.splitlines() if line.startswith("data:")]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


def test_a_completion_has_the_answer_and_its_tokens(http: httpx.Client, model: StandIn) -> None:
    said = http.post("/v1/chat/completions", json={"model": "chat", "messages": ASKED}, headers=as_("site"))
    assert said.status_code == 200, said.text
    found = said.json()
    (choice,) = found["choices"]
    assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "stop")
    assert choice["message"]["content"] == "answer of What now?"
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + found["usage"]["completion_tokens"] > 0


def test_a_streamed_completion_is_the_same_text_in_pieces(http: httpx.Client) -> None:
    asked = {"model": "chat", "messages": ASKED, "stream": True, "stream_options": {"include_usage": True}}
    *pieces, usage, done = lines(http.post("/v1/chat/completions", json=asked, headers=as_("site")))
    assert done == "[DONE]"
    assert usage["usage"]["total_tokens"] > 0
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == "answer of What now?"
    assert (pieces[0]["choices"][0]["delta"]["role"], pieces[-1]["choices"][0]["finish_reason"]) == ("assistant", "stop")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "chat", "messages": []}, 422),
        ({"model": "chat"}, 422),
        ({"model": "chat", "messages": [ASKED[2]]}, 422),
        ({"model": "chat", "messages": ["hello"]}, 422),
        ({"model": "chat", "messages": ASKED, "inputs": 5}, 422),
        ({"model": "classify", "messages": ASKED}, 404),
    ],
)
def test_a_conversation_that_asks_nothing_is_refused(http: httpx.Client, body: Any, status: int) -> None:
    said = http.post("/v1/chat/completions", json=body, headers=as_("site"))
    assert said.status_code == status, said.text


def test_models_are_the_calls_that_a_token_is_good_for(http: httpx.Client) -> None:
    names = {one["id"] for one in http.get("/v1/models", headers=as_("site")).json()["data"]}
    assert names == {"draft", "chat"}


def test_ag_ui_gets_a_run_with_one_message(http: httpx.Client) -> None:
    asked = {"threadId": "t1", "runId": "r1", "messages": ASKED, "tools": [], "context": [], "state": {}, "forwardedProps": {}}
    events = lines(http.post("/v1/ag-ui/chat", json=asked, headers=as_("site")))
    assert events[0] == {"type": "RUN_STARTED", "threadId": "t1", "runId": "r1"}
    assert [events[1]["type"], events[-2]["type"], events[-1]["type"]] == [
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_END",
        "RUN_FINISHED",
    ]
    assert "".join(event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT") == "answer of What now?"
    failed = lines(
        http.post("/v1/ag-ui/chat", json={"messages": [{"role": "user", "content": "standin:400"}]}, headers=as_("site"))
    )
    assert failed[-1]["type"] == "RUN_ERROR"


def test_the_ai_sdk_gets_its_ui_message_stream(http: httpx.Client) -> None:
    asked = {"id": "c1", "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "What now?"}]}]}
    said = http.post("/v1/ai-sdk/chat", json=asked, headers=as_("site"))
    assert said.headers["x-vercel-ai-ui-message-stream"] == "v1"
    *events, done = lines(said)
    assert done == "[DONE]"
    kinds = [event["type"] for event in events]
    assert [*kinds[:2], *kinds[-2:]] == ["start", "text-start", "text-end", "finish"]
    assert "".join(event["delta"] for event in events if event["type"] == "text-delta") == "answer of What now?"


# -- WebSockets
def socket(project: Project, name: str, who: str) -> Any:
    return connect(f"{project.env['GATEWAY'].replace('http', 'ws')}/v1/call/{name}", additional_headers=as_(who))


def test_a_socket_answers_one_call_after_the_other(project: Project) -> None:
    with socket(project, "draft", "site") as ws:
        for text in ("one", "two"):
            ws.send(json.dumps({"inputs": {"text": text}}))
            said = [json.loads(ws.recv(30))]
            while said[-1]["kind"] not in ("result", "error"):
                said.append(json.loads(ws.recv(30)))
            assert (said[0]["kind"], said[-1]["data"]) == ("accepted", {"reply": f"reply of {text}"})


def test_closing_a_socket_ends_the_request_to_the_model(project: Project, model: StandIn) -> None:
    with socket(project, "draft", "site") as ws:
        ws.send(json.dumps({"inputs": {"text": "standin:hang socket"}}))
        eventually(lambda: model.running == 1)
    assert eventually(lambda: model.running == 0)


def test_a_socket_is_refused_as_a_request_is(project: Project) -> None:
    for name, who, status in (("draft", "nobody", 401), ("nothing", "site", 404)):
        with pytest.raises(InvalidStatus) as refused, socket(project, name, who):
            pass
        assert refused.value.response.status_code == status
    for sent in ("not json", "[]", '{"inputs": 5}', '{"inputs": {}, "timeout": "soon"}'):
        with socket(project, "draft", "site") as ws:
            ws.send(sent)
            with pytest.raises(ConnectionClosed) as closed:
                ws.recv(30)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
