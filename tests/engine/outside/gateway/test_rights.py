"""A gateway with exactly the rights of its role, as `server permissions` prints them, does all it offers on a real server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_bench import Project, stand_in
from gateway_bench import COUNTS, SETTINGS, TOKENS, TOPOLOGY, as_
from standin import StandIn
from waiting import eventually

from dspex.bus.local.launch import free_port
from dspex.bus.local.server import LocalServer

U, KEY, SECRET = "rights", "0123456789abcdef" * 4, "of the hook"
OPTIONS: Mapping[str, list[str]] = {
    "engine": [],
    "worker": ["--pool", "lightweight"],
    "gateway": [
        "--pool",
        "lightweight",
        "--subject",
        f"{U}.in",
        "--subject",
        f"{U}.hooks.*",
        "--subject",
        f"{U}.names",
        "--subject",
        f"{U}.ticks",
    ],
}


class Visitor:
    """Asks a gateway as who may do all, and keeps what was asked."""

    def __init__(self, port: int, model: StandIn) -> None:
        self.model = model
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=as_("operator"))
        self.asked = set[str]()

    def ask(self, method: str, path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        """What comes of it."""
        content = None if body is None else json.dumps(body)
        said = self.http.request(method, path, content=content, headers={"Content-Type": "application/json", **headers})
        assert said.status_code == status, (method, path, said.status_code, said.text)
        self.asked.add(f"{method} {path.partition('?')[0]}")
        return said.json() if "json" in said.headers.get("content-type", "") else said.text

    def published(self, text: str) -> str:
        said = self.ask("post", f"/v1/publish/{U}.in", {"text": text}, 202)
        return str(self.ask("get", f"/v1/runs/{said['run']}")["id"])

    def decided(self, run: str) -> None:
        def waits() -> list[str]:
            return [one["id"] for one in self.ask("get", "/v1/approvals")["approvals"] if one["run"] == run]

        (one,) = eventually(waits)
        self.ask("post", f"/v1/approvals/{one}", {"decision": "accept", "note": "fine"})
        assert self.ask("get", f"/v1/runs/{run}?wait=30s&tree=true&outputs=true")["status"] == "done"

    def followed(self, path: str) -> None:
        """The first event of a stream."""
        with self.http.stream("GET", path) as said:
            assert next(line for line in said.iter_lines() if line.startswith("event: ")) != "event: error"
        self.asked.add(f"get {path}")

    def not_asked(self) -> list[str]:
        """What the gateway says that it offers, and nobody has asked here."""
        offered = self.ask("get", "/openapi.json")["paths"]
        patterns = {f"{method} {path}": path for path, methods in offered.items() for method in methods}
        told = {name: re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(name)) for name in patterns}
        return [name for name, pattern in told.items() if not any(re.fullmatch(pattern, one) for one in self.asked)]


@pytest.mark.long
@pytest.mark.asyncio
@pytest.mark.parametrize("sealed", [False, True])
async def test_a_gateway_does_all_that_it_offers_with_the_rights_of_its_role(tmp_path: Path, sealed: bool) -> None:
    model = StandIn()
    with stand_in(model) as url:
        settings = f'engine.encrypt_key_env = "SEAL"\n{SETTINGS}' if sealed else SETTINGS
        project = Project(tmp_path, U, settings.format(url=url, u=U), **TOKENS, HOOK_SECRET=SECRET, SEAL=KEY)
        project.write("support.yaml", TOPOLOGY.format(u=U))
        project.write("counts.yaml", COUNTS.format(u=U))
        async with LocalServer(tmp_path / "server" / "js", port=None, extra_config=_accounts(project)) as server:
            await asyncio.to_thread(_visited, project, server.url, model)


def _accounts(project: Project) -> str:
    users = list[str]()
    for role, options in OPTIONS.items():
        done = project.here("server", "permissions", "--role", role, *options)
        assert done.code == 0, done.err
        users.append(re.sub(r"\$[A-Z_]+_PASSWORD", "p", done.out))
    users.append("{ user: all, password: p }")
    return f"accounts {{ A {{ jetstream: enabled, users: [\n{chr(10).join(users)}\n] }} }}\nno_auth_user: all\n"


def _visited(project: Project, url: str, model: StandIn) -> None:
    port = free_port(None)

    def role(name: str) -> dict[str, str]:
        login = {"NATS_URL": url, "NATS_USER": name, "NATS_PASSWORD": "p"}
        return {**login, "DSPEX_SERVER__INBOX_PREFIX": f"_INBOX_{name}"}

    visitor = Visitor(port, model)
    with (
        visitor.http,
        project.start("run", "--pools", "none", **role("engine")) as engine,
        project.start("worker", "lightweight", **role("worker")) as pool,
        project.start("gateway", "--bind", f"127.0.0.1:{port}", **role("gateway")) as gateway,
    ):
        running = (engine, pool, gateway)
        for one, word in zip(running, ("ready", "1/1 ready", "gateway")):
            one.until(word)
        eventually(lambda: visitor.http.get("/readyz").status_code == 200)
        for visit in (_runs, _letters, _calls, _rest):
            visit(visitor)
        assert visitor.not_asked() == []
        assert [one.end() for one in running] == [0, 0, 0]
        told = "".join(one.errors() for one in running)
        assert "permissions violation" not in told.lower(), told


def _runs(visitor: Visitor) -> None:
    first, second = visitor.published("one"), visitor.published("two")
    for run in (first, second):
        visitor.decided(run)
    visitor.followed(f"/v1/runs/{first}/events")
    visitor.followed("/v1/runs/events")
    assert visitor.ask("post", f"/v1/runs/{first}/replay", {})["same"] is True
    change = {"at": "draft#0", "outputs": {"reply": "a better one"}}
    assert visitor.ask("post", f"/v1/runs/{first}/fork", {**change, "deliver": False}, 201)["parent"] == first
    visitor.ask("get", f"/v1/runs/{first}/diff?with={second}")
    visitor.ask("post", f"/v1/runs/{first}/scores", {"name": "helpful", "value": 1, "node": "draft"}, 201)
    assert second in [one["id"] for one in visitor.ask("get", "/v1/runs?status=done")["runs"]]
    hanging = visitor.published("standin:hang three")
    eventually(lambda: visitor.model.running == 1)
    assert visitor.ask("post", f"/v1/runs/{hanging}/cancel", {})["status"] == "cancelled"


def _letters(visitor: Visitor) -> None:
    for text in ("standin:nonsense one", "standin:nonsense two"):
        run = visitor.published(text)
        eventually(lambda run=run: run in [one["run"] for one in visitor.ask("get", "/v1/letters")["letters"]])
    (group,) = [one for one in visitor.ask("get", "/v1/letters/groups")["groups"] if one["reason"] == "InvalidOutput"]
    of = {"fingerprint": group["fingerprint"], "limit": 1}
    assert visitor.ask("post", "/v1/letters/redrive", of)["redriven"] == 1
    eventually(lambda: len(visitor.ask("get", f"/v1/letters?fingerprint={of['fingerprint']}")["letters"]) == 2)
    assert visitor.ask("post", "/v1/letters/drop", of)["dropped"] == 1


def _calls(visitor: Visitor) -> None:
    asked = [{"role": "user", "content": "What now?"}]
    for name, body in (("classify", {"text": "a"}), ("draft", {"text": "a"}), ("chat?session=ann", {"question": "a"})):
        visitor.ask("post", f"/v1/call/{name}", body)
    visitor.ask("post", "/v1/call/draft", {"text": "paid once"}, **{"Idempotency-Key": "order 7"})
    visitor.ask("post", "/v1/call/draft", {"text": "streamed"}, Accept="text/event-stream")
    visitor.ask("post", "/v1/chat/completions", {"model": "chat", "messages": asked})
    ag_ui = {"threadId": "t", "runId": "r", "messages": asked, "tools": [], "context": [], "state": {}, "forwardedProps": {}}
    assert "RUN_FINISHED" in visitor.ask("post", "/v1/ag-ui/chat", ag_ui)
    parts = [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "What now?"}]}]
    assert "[DONE]" in visitor.ask("post", "/v1/ai-sdk/chat", {"id": "c", "messages": parts})
    assert visitor.ask("get", "/v1/sessions/ann")
    assert {one["id"]: one["turns"] for one in visitor.ask("get", "/v1/sessions")["sessions"]}["ann"] == 1
    visitor.ask("post", "/v1/call/chat?session=ann", {"question": "b"})
    assert {one["id"]: one["turns"] for one in visitor.ask("get", "/v1/sessions")["sessions"]}["ann"] == 2


def _rest(visitor: Visitor) -> None:
    issue = {"text": "from a webhook"}
    signed = hmac.new(SECRET.encode(), json.dumps(issue).encode(), hashlib.sha256).hexdigest()
    visitor.ask("post", "/v1/hooks/issues", issue, 202, **{"X-Hub-Signature-256": f"sha256={signed}"})
    visitor.ask("post", f"/v1/publish/{U}.ticks", {"customer": "Ann", "at": "2026-01-01T00:00:01Z"}, 202)
    visitor.ask("post", f"/v1/publish/{U}.names", {"name": "Ann"}, 202)
    eventually(lambda: visitor.ask("get", "/v1/windows")["windows"])
    for path in ("/v1/models", "/v1/topologies", "/v1/status", "/livez", "/readyz", "/metrics", "/asyncapi.json"):
        visitor.ask("get", path)
