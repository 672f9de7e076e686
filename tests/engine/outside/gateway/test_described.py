"""What the gateway says of itself holds: each path, tried with what fits and with what does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from cli_bench import Project
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gateway_bench import TOKENS, as_, served
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from standin import StandIn

import dspex
from dspex.asgi import app
from dspex.bus.errors import ConfigError

DONE = ("/cancel", "/events", "/v1/approvals/")  # they change what the others are asked about, or never end by themselves


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[Any]:
    """The description, without the paths that wait, of an application that nobody else uses: anything is tried on it."""
    with served(tmp_path_factory.mktemp("described"), nats_url, StandIn()) as project:
        schema = schemathesis.openapi.from_url(f"{project.env['GATEWAY']}/openapi.json", headers=as_("operator"))
        yield schema.exclude(path_regex="|".join(DONE))


@pytest.mark.long
def test_no_path_answers_otherwise_than_it_says(described: Any) -> None:
    tried = 0
    for found in described.get_all_operations():
        operation = found.ok()

        @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
        @given(case=operation.as_strategy())
        def as_it_says(case: Any) -> None:
            said = case.call(headers=as_("operator"), timeout=60)
            if "an integer has 64 bits at most" not in said.text:  # which no schema of an object with any other fields can say
                case.validate_response(said)

        as_it_says()
        tried += 1
    assert tried > 10


def test_calls_are_described_by_what_is_deployed(http: httpx.Client) -> None:
    found = http.get("/openapi.json", headers=as_("operator")).json()
    asked = found["paths"]["/v1/call/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    answer = found["paths"]["/v1/call/classify"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    Draft202012Validator.check_schema(asked)
    assert (list(asked["properties"]), asked["required"]) == (["text"], ["text"])
    assert set(answer["properties"]["data"]["properties"]) == {"kind", "urgency"}
    assert found["security"] == [{"bearer": []}]
    assert http.get("/openapi.json").status_code == 401


def test_it_is_mounted_below_a_path_of_another_application(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TOKENS, "HOOK_SECRET": "of the hook", "NATS_URL": project.env["NATS_URL"]}.items():
        monkeypatch.setenv(name, value)
    outer = FastAPI()
    inner = app(dspex.Settings.load(project.folder), calls={"ask": dspex.predict("text -> reply")}, subjects=[project.input])
    outer.mount("/ai", inner)
    with TestClient(outer, base_url="http://localhost") as client:
        said = client.post("/ai/v1/call/ask", json={"text": "mounted"}, headers=as_("operator"))
        assert (said.status_code, said.json()["data"]) == (200, {"text": "mounted", "reply": "reply of mounted"}), said.text
        assert client.get("/ai/openapi.json", headers=as_("operator")).json()["servers"] == [{"url": "/ai"}]
        client.portal.call(inner.state.entrance.close)  # type: ignore[union-attr]


@pytest.fixture
def settings_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nats_url: str) -> Iterator[Any]:
    monkeypatch.setenv("NATS_URL", nats_url)
    name = f"o{os.urandom(4).hex()}"

    def load(text: str) -> dspex.Settings:
        (tmp_path / "dspex.toml").write_text(f'app = "{name}"\n{text}')
        return dspex.Settings.load(tmp_path)

    return load


def test_a_token_for_what_is_not_offered_or_without_its_variable_is_refused(settings_of: Any) -> None:
    wrong = settings_of('http.calls = { a = "t/a" }\n[calls.site]\ntoken_env = "PATH"\ncalls = ["b"]')
    with pytest.raises(ConfigError, match="names 'b', which is not offered"):
        app(wrong)
    with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE"):
        app(settings_of('[calls.site]\ntoken_env = "NO_SUCH_VARIABLE"'))


def test_without_tokens_only_this_machine_sees_runs(settings_of: Any) -> None:
    made = app(settings_of('http.calls = { a = "text -> b" }'))
    with TestClient(made, base_url="http://localhost") as here:
        assert here.get("/v1/runs").status_code == 200
        assert here.get("/v1/models").json()["data"][0]["id"] == "a"
        for more in ({"X-Forwarded-For": "192.0.2.1"}, {"Host": "rebound.example"}):
            assert here.get("/v1/runs", headers=more).status_code == 403
    with TestClient(made, base_url="http://localhost", client=("192.0.2.1", 5)) as elsewhere:
        assert elsewhere.get("/v1/runs").status_code == 403


def test_without_a_server_requests_are_told_to_come_again(settings_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATS_URL")
    nowhere = settings_of('server.url = "nats://127.0.0.1:1"\nhttp.calls = { a = "text -> b" }')
    with TestClient(app(nowhere), base_url="http://localhost") as here:
        said = here.post("/v1/call/a", json={"text": "x"})
        assert (said.status_code, said.json()["title"]) == (503, "Unreachable")
        assert (here.get("/livez").status_code, here.get("/readyz").status_code) == (200, 503)
