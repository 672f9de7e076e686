"""`dspex doctor` asks the language models: which key or URL is wrong, and how, is said before a call has a fallback for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dspex.bus.settings.model import Settings
from dspex.engine.cli.server import models
from dspex.engine.cli.server.diagnosis import Diagnosis

KEY = "sk-secret-of-nobody"
ANSWER = {"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]}


class Provider:
    """A model's server that answers every request in one way."""

    def __init__(self) -> None:
        self.status, self.body, self.hangs = 200, json.dumps(ANSWER), False
        self.asked: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        size = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        self.asked.append(head + (await reader.readexactly(size)).decode())
        if self.hangs:
            await reader.read()  # until the other side gives up
        else:
            body = self.body.encode()
            writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()


@pytest_asyncio.fixture
async def provider(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Provider]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_KEY", KEY)
    found = Provider()
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found.url = f"http://127.0.0.1:{port}/v1"
        yield found


async def asked(url: str, *, ask: bool = True, **profile: object) -> Diagnosis:
    lm = {"model": "openai/small", "key_env": "A_KEY", "base_url": url, **profile}
    (found,) = await models.models(Settings.load(lm={"main": lm}), ask=ask)
    assert KEY not in str(found)
    return found


@pytest.mark.asyncio
async def test_a_model_that_answers_was_sent_one_small_call_with_its_key(provider: Provider) -> None:
    found = await asked(provider.url, params={"temperature": 0.0, "max_tokens": 800})
    assert found.ok
    assert found.message.startswith("openai/small; A_KEY is set; it answered in 0.")
    (request,) = provider.asked
    assert f"Authorization: Bearer {KEY}" in request
    body = json.loads(request.split("\r\n\r\n")[1])
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("small", 0.0, 16)
    assert len(json.dumps(body["messages"])) < 100


@pytest.mark.asyncio
async def test_where_it_costs_money_no_model_is_asked(provider: Provider) -> None:
    found = await asked(provider.url, ask=False)
    assert (found.ok, found.message) == (True, "openai/small; A_KEY is set; not asked")
    assert provider.asked == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "body", "says", "fix"),
    [
        (401, {"error": {"message": f"no such key: {KEY}"}}, "answered 401: no such key: …", "correct the key in A_KEY"),
        (404, {"error": {"message": "no model small"}}, "answered 404: no model small", "or lm.main.model"),
        (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, "answered 429: pay", "correct the key in A_KEY"),
        (429, {"error": {"message": "slowly"}}, "answered 429: slowly", "wait"),
        (
            500,
            {"error": {"message": "broken"}},
            "answered 500: broken",
            "start the model's server, or correct lm.main.base_url",
        ),
        (200, [1], "answered", "start the model's server, or correct lm.main.base_url"),
    ],
)
async def test_a_model_that_refuses_is_a_fault_that_names_its_key_and_where_it_is(
    provider: Provider, status: int, body: object, says: str, fix: str
) -> None:
    provider.status, provider.body = status, json.dumps(body)
    found = await asked(provider.url)
    assert not found.ok
    assert found.message.startswith("openai/small, asked with the key in A_KEY, did not answer: 127.0.0.1:")
    assert says in found.message
    assert fix in str(found.fix)


@pytest.mark.asyncio
async def test_a_model_that_says_nothing_is_a_fault_after_a_while(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "WITHIN", 0.2)
    provider.hangs = True
    found = await asked(provider.url)
    assert (found.ok, "gave no answer within 0.2 s" in found.message) == (False, True)


@pytest.mark.asyncio
async def test_a_url_where_nothing_listens_is_a_fault(provider: Provider) -> None:
    found = await asked("http://127.0.0.1:9/v1")
    assert (found.ok, "127.0.0.1:9 cannot be reached" in found.message) == (False, True)
    assert found.fix == "start the model's server, or correct lm.main.base_url"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("said", "ok", "message"),
    [
        ("[]", True, "anthropic/small; A_KEY is set; it answered in "),
        (json.dumps(["AuthenticationError", f"bad key {KEY}"]), False, "did not answer: AuthenticationError: bad key …"),
        ("", False, "has no DSPy that could ask it"),
    ],
)
async def test_a_model_of_another_provider_is_asked_by_the_dspy_of_a_pool_that_uses_it(
    provider: Provider, tmp_path: Path, said: str, ok: bool, message: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat > {tmp_path}/got\necho '{said}'\n")
    python.chmod(0o755)
    lm = {"model": "anthropic/small", "key_env": "A_KEY"}
    settings = Settings.load(lm={"main": lm}, pools={"writers": {"python": str(python)}})
    (found,) = await models.models(settings, ask=True)
    assert (found.ok, message in found.message) == (ok, True), found
    assert KEY not in str(found)
    got = json.loads((tmp_path / "got").read_text())
    assert (got["model"], got["params"]["api_key"]) == ("anthropic/small", KEY)
