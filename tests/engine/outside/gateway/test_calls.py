"""Calls over HTTP: answers, refusals, streams, and who goes away."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from cli_bench import Project
from gateway_bench import as_
from standin import StandIn
from waiting import eventually

import dspex
from dspex.asgi import app


def test_a_call_is_answered_by_its_fields(http: httpx.Client) -> None:
    said = http.post("/v1/call/classify", json={"text": "My card was stolen"}, headers=as_("operator"))
    assert said.status_code == 200, said.text
    found = said.json()
    assert found["data"]["kind"] in ("good", "bad")
    assert found["usage"]["input_tokens"] > 0
    assert found["attempts"] == 1


@pytest.mark.parametrize(
    ("name", "who", "body", "status", "code"),
    [
        ("draft", "nobody", {"text": "a"}, 401, None),
        ("classify", "site", {"text": "a"}, 404, None),
        ("nothing", "operator", {"text": "a"}, 404, None),
        ("draft", "site", {"wrong": "a"}, 422, "DX501"),
        ("draft", "site", ["a"], 422, "DX501"),
        ("draft", "site", {"text": "x" * 100_000}, 413, None),
        ("draft", "looker", {"text": "a"}, 404, None),
    ],
)
def test_what_is_refused_is_told_as_a_problem(
    http: httpx.Client, name: str, who: str, body: Any, status: int, code: str | None
) -> None:
    said = http.post(f"/v1/call/{name}", json=body, headers=as_(who))
    assert (said.status_code, said.headers["content-type"]) == (status, "application/problem+json"), said.text
    found = said.json()
    assert found["status"] == status
    assert found["detail"]
    if code is not None:
        assert found["fix"]


def test_a_page_of_another_site_can_neither_call_nor_publish(http: httpx.Client, project: Project) -> None:
    for path in ("/v1/call/draft", f"/v1/publish/{project.input}"):
        said = http.post(path, json={"text": "a"}, headers={**as_("site"), "Origin": "https://evil.example"})
        assert said.status_code == 403
    plain = http.post("/v1/call/draft", content=b'{"text": "a"}', headers={**as_("site"), "Content-Type": "text/plain"})
    assert plain.status_code == 415


def test_the_time_of_a_call_is_said_in_the_request_and_its_end_is_504(http: httpx.Client, model: StandIn) -> None:
    said = http.post("/v1/call/draft?timeout=1s", json={"text": "standin:hang late"}, headers=as_("site"))
    assert (said.status_code, said.json()["title"]) == (504, "CallTimeout")
    eventually(lambda: model.running == 0)
    wrong = http.post("/v1/call/draft?timeout=soon", json={"text": "a"}, headers=as_("site"))
    assert (wrong.status_code, wrong.json()["code"]) == (400, "DX102")
    unknown = http.post("/v1/call/draft?timeot=5s", json={"text": "a"}, headers=as_("site"))
    assert (unknown.status_code, "timeout" in unknown.json()["fix"]) == (400, True)


def test_a_token_has_so_many_requests_and_so_many_calls_at_once(http: httpx.Client, model: StandIn) -> None:
    assert [http.post("/v1/call/draft", json={"text": "few"}, headers=as_("few")).status_code for _ in range(3)] == [
        200,
        200,
        429,
    ]
    with http.stream("POST", "/v1/call/draft", json={"text": "standin:hang one"}, headers=_streaming("one")) as opened:
        eventually(lambda: model.running == 1)
        said = http.post("/v1/call/draft", json={"text": "two"}, headers=as_("one"))
        assert (said.status_code, int(said.headers["retry-after"]) >= 1) == (429, True)
        opened.close()
    eventually(lambda: http.post("/v1/call/draft", json={"text": "two"}, headers=as_("one")).status_code == 200)


def test_all_slots_busy_is_429_with_a_time_to_come_again(http: httpx.Client, model: StandIn) -> None:
    streams = [
        http.stream("POST", "/v1/call/draft", json={"text": f"standin:hang {n}"}, headers=_streaming("operator"))
        for n in range(4)
    ]
    for stream in streams:
        stream.__enter__()
    eventually(lambda: model.running == 4)
    said = http.post("/v1/call/draft?timeout=6s", json={"text": "no slot"}, headers=as_("operator"))
    assert (said.status_code, said.json()["title"]) == (429, "Saturated"), said.text
    assert int(said.headers["retry-after"]) >= 1
    for stream in streams:
        stream.__exit__(None, None, None)
    eventually(lambda: model.running == 0)


@pytest.mark.parametrize("streamed", [False, True])
def test_who_goes_away_ends_the_request_to_the_model(project: Project, model: StandIn, streamed: bool) -> None:
    headers = _streaming("site") if streamed else as_("site")
    with httpx.Client(base_url=project.env["GATEWAY"]) as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/call/draft", json={"text": f"standin:hang {streamed}"}, headers=headers, timeout=1.0)
    eventually(lambda: model.running == 0)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_chat_front_end_that_goes_away_ends_the_request_to_the_model(
    project: Project, model: StandIn, streamed: bool
) -> None:
    said = [{"role": "user", "content": f"standin:hang completions {streamed}"}]
    body = {"model": "chat", "messages": said, "stream": streamed}
    with httpx.Client(base_url=project.env["GATEWAY"]) as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=body, headers=as_("site"), timeout=1.0)
    eventually(lambda: model.running == 0)


def test_an_idempotency_key_makes_the_same_call_again_one_call(http: httpx.Client, model: StandIn) -> None:
    headers = {**as_("site"), "Idempotency-Key": "order 7"}
    first = http.post("/v1/call/draft", json={"text": "paid once"}, headers=headers)
    again = http.post("/v1/call/draft", json={"text": "paid once"}, headers=headers)
    assert (first.status_code, first.json()["data"]) == (200, again.json()["data"]), first.text
    assert model.texts["paid once"] == 1
    other = http.post("/v1/call/draft", json={"text": "another's"}, headers={**headers, **as_("operator")})
    assert other.json()["data"]["reply"] == "reply of another's"


def test_a_stream_with_a_key_is_a_turn_of_a_session_or_refused(http: httpx.Client) -> None:
    headers = {**_streaming("site"), "Idempotency-Key": "turn-1"}
    assert http.post("/v1/call/chat", json={"question": "a"}, headers=headers).status_code == 400
    answers = []
    for _ in range(2):
        with http.stream("POST", "/v1/call/chat?session=bob", json={"question": "once"}, headers=headers) as said:
            answers.append(list(_events(said))[-1][1]["id"])
    assert answers[0] == answers[1]


def test_a_session_remembers_what_was_said(http: httpx.Client) -> None:
    for text in ("one", "two"):
        said = http.post("/v1/call/chat?session=anna", json={"question": text}, headers=as_("site"))
        assert said.status_code == 200, said.text


def test_a_stream_says_who_has_the_call_then_the_text_then_the_result(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/call/draft", json={"text": "stolen card"}, headers=_streaming("site")) as said:
        assert said.headers["content-type"].startswith("text/event-stream")
        events = list(_events(said))
    assert [events[0][0], events[-1][0]] == ["accepted", "result"]
    text = "".join(data["text"] for kind, data in events if kind == "chunk" and data["field"] == "reply")
    assert text == events[-1][1]["data"]["reply"]


def test_a_stream_that_fails_ends_with_the_problem(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/call/draft", json={"text": "standin:400 bad"}, headers=_streaming("site")) as said:
        events = list(_events(said))
    assert (events[-1][0], events[-1][1]["title"], events[-1][1]["status"]) == ("error", "LMRefused", 502)


@pytest.mark.asyncio
async def test_who_may_have_one_call_open_asks_on_as_soon_as_a_stream_has_told_its_result(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in project.env.items():
        monkeypatch.setenv(name, value)
    gateway = app(dspex.Settings.load(project.folder))
    asked_on: list[int] = []

    async def ask() -> int:
        transport = httpx.ASGITransport(gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            said = await client.post("/v1/call/draft", json={"text": "one by one"}, headers=as_("one"))
        return said.status_code

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            await send(message)
            if b"event: result" in message.get("body", b""):  # the gateway does not know yet that this was sent
                asked_on.append(await ask())

        await gateway(scope, receive, told)

    transport = httpx.ASGITransport(watched)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
        await client.post("/v1/call/draft", json={"text": "at first"}, headers=_streaming("one"))
    await gateway.state.entrance.close()
    assert asked_on == [200]


def _streaming(who: str) -> dict[str, str]:
    return {**as_(who), "Accept": "text/event-stream"}


def _events(said: httpx.Response) -> Any:
    kind = ""
    for line in said.iter_lines():
        if line.startswith("event:"):
            kind = line.partition(":")[2].strip()
        elif line.startswith("data:"):
            yield kind, json.loads(line.partition(":")[2])
