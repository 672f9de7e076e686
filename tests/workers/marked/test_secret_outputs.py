"""A secret that is put through an application, and searched for in all that it says: by verbs, HTTP, in logs and files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from cli_bench import Project, stand_in
from collector import Collector
from standin import StandIn

from dspex.bus.local.launch import free_port
from dspex.bus.serving.keys.secret_fields import SECRET

CANARY = "canary-4929111122223333"
PAYING = """
from typing import Any
from pydantic import BaseModel, Field
from dspex import Signature, Topology

class Told(BaseModel):
    text: str
    card: str = Field(json_schema_extra={{"secret": True}})

class Replied(BaseModel):
    reply: str
    code: str = Field(json_schema_extra={{"secret": True}})

def keep(state: Any, data: Any, context: Any) -> Any:
    return {{"card": data["card"], "paid from": data["card"]}}, [{{**data, "saw": data["card"]}}]

def refuse(data: Any) -> Any:
    if data["text"] == "bad":
        raise ValueError(f"cannot pay from {{data['saw']}}")
    return {{**data, "size": len(data["text"]) + {more}}}

topology = Topology("paying")
source = topology.source("{u}.in")
asked = source.predict(Signature.of(Told, Replied), name="ask", retry={{"attempts": 2, "backoff": "10ms"}})
kept = asked.key_by("text", name="by_text").stateful(keep, init=dict, name="keep")
renamed = kept.map(lambda d: {{"text": d["text"], "reply": d["reply"], "saw": d["saw"]}}, name="rename")
renamed.map(refuse, name="refuse").sink("{u}.out")
source.filter("text == 'wait'", name="waits").approve(name="ok", show=["card"]).sink("{u}.approved")
"""
SETTINGS = """
topologies = ["{code}:topology"]
engine.encrypt_key_env = "SEAL"
engine.submit = true
lm.main = {{ model = "openai/stand-in", base_url = "{url}", price = {{ input = 1.0, output = 2.0 }} }}
pools.lightweight = {{ size = 1, programs = ["dspy:BootstrapFewShot"] }}
[http]
subjects = ["{u}.in"]
calls = {{ ask = "paying/ask" }}
"""
STATE = {
    "demos": [{"text": f"from {CANARY}", "card": CANARY, "reply": "yes", "code": "1234"}],
    "signature": {"instructions": f"Pay, as from {CANARY}.", "fields": [{"prefix": f"{n}:", "description": n} for n in "abcd"]},
}
MANY = "import json, sys; from dspex.__main__ import main\nfor one in json.loads(sys.argv[1]): main(one)"
"""Runs verbs, one after the other. What they find wrong they say."""


class Paying:
    """An application through which the secret went. `run`: of an event that was paid; `letters`: how many failed."""

    def __init__(self, project: Project, url: str, collector: Collector, logs: list[str]) -> None:
        self.project, self.url, self.collector, self.logs = project, url, collector, logs
        self.runs = {one["data"]["text"]: one["run"] for one in self._watched()}

    def _watched(self) -> list[dict[str, Any]]:
        return self.project.here("--json", "watch", self.project.input, "--start", "all", "--count", "4").objects()

    def said(self, *verbs: tuple[str, ...]) -> str:
        """What verbs say, for people and as JSON, in a process with the code of the folder."""
        words = [[*how, *verb] for verb in verbs for how in ([], ["--json"])]
        command = [sys.executable, "-c", MANY, json.dumps(words)]
        found = subprocess.run(
            command, cwd=self.project.folder, env=self.project.env, capture_output=True, text=True, timeout=300
        )
        assert found.returncode == 0, found.stderr
        return found.stdout + found.stderr


@pytest.fixture(scope="module")
def paying(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[Paying]:
    u, port, folder = f"s{os.urandom(5).hex()}", free_port(None), tmp_path_factory.mktemp("paying")
    with Collector() as collector, stand_in(StandIn()) as url:
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        project = Project(
            folder, u, SETTINGS.format(url=url, u=u, code="paying"), NATS_URL=nats_url, SEAL=os.urandom(32).hex(), **otel
        )
        project.write("paying.py", PAYING.format(u=u, more=0))
        project.write("changed.py", PAYING.format(u=u, more=1))
        project.write("state.json", json.dumps(STATE))
        logs = list[str]()
        with project.start("-vv", "run", "--http", f"127.0.0.1:{port}") as run:
            run.until("ready in")
            for text in ("good", "bad", "standin:400", "wait"):
                made = ("publish", project.input, f"text={text}", f"card={CANARY}")
                logs.append(project.here("--json", *made, *(["--wait", "60s"] if text != "wait" else [])).err)
            project.here("call", "paying/ask", "text=hello", f"card={CANARY}", "--session", "talk")
            project.here("programs", "put", "pay", "state.json")
            yield Paying(project, f"http://127.0.0.1:{port}", collector, logs)
            assert run.end() == 0, run.errors()
            logs += [run.errors(), *run.lines]
        assert "ready in" in "".join(logs)
        assert CANARY not in "".join(logs)


@pytest.mark.long
def test_the_verbs_do_not_say_what_is_secret(paying: Paying) -> None:
    u, run, bad = paying.project.u, paying.runs["good"], paying.runs["bad"]
    paying.project.here("runs", "score", run, "helpful", "1", "--note", f"paid from {CANARY}")
    number = paying.project.here("--json", "dlq", "ls").objects()[0]["sequence"]
    waits = paying.project.here("--json", "approvals", "ls").objects()[0]["id"]
    said = paying.said(
        *(("watch", f"{u}.{end}", "--start", "all", "--count", n) for end, n in (("in", "4"), ("out", "1"))),
        *(
            ("watch", what, "--start", "all", "--count", "2")
            for what in ("paying/ask", f"dspex.{u}.dead.>", f"dspex.{u}.record.>")
        ),
        *(("runs", verb, one) for verb in ("show", "wait") for one in (run, bad)),
        ("runs", "show", "--requests", run),
        *(("runs", "explain", one, step) for one, step in ((run, f"{u}.out"), (bad, "ask#0"))),
        ("runs", "ls"),
        ("runs", "scores"),
        ("diff", run, bad),
        ("diff", run, bad, "--as", "markdown"),
        ("dlq", "ls"),
        ("dlq", "show", str(number)),
        ("approvals", "ls"),
        ("approvals", "show", waits),
        ("sessions", "ls"),
        ("sessions", "show", "talk"),
        ("state", "ls", "keep"),
        ("state", "get", "keep", "good"),
        ("programs", "ls"),
        ("programs", "show", "pay"),
        ("programs", "show", "paying/ask"),
        ("programs", "show", "paying/ask", "--state", "pay"),
        ("status",),
        ("audit", "ls"),
        ("pools", "ls"),
        ("dlq", "redrive", str(number), "--dry-run"),
        ("show",),
        ("plan",),
        ("runs", "forget", "--session", "talk", "--dry-run"),
    )
    assert said.count(SECRET) > 50
    assert _around(said) == []


def test_of_what_a_function_keeps_nothing_is_shown_where_a_secret_may_be_in_it_and_it_is_said_why(paying: Paying) -> None:
    (listed,) = [row for row in paying.project.here("--json", "state", "ls", "keep").objects() if row["key"] == "good"]
    shown = paying.project.here("state", "get", "keep", "good")
    assert (listed["value"], shown.out.strip()) == (SECRET, f'"{SECRET}"')
    assert "paying/keep may keep values of secret fields under other names" in shown.err


@pytest.mark.long
def test_what_is_done_again_does_not_say_what_is_secret(paying: Paying) -> None:
    run, folder = paying.runs["good"], paying.project.folder
    paying.project.here("runs", "export", run, "-o", "run.jsonl")
    changed = ("--with", "changed:topology")
    said = paying.said(
        *(("replay", one, *code) for one in paying.runs.values() for code in ((), changed)),
        ("replay", run, *changed, "--explain", "--as", "markdown"),
        ("replay", "--topology", "paying", *changed),
        ("replay", "--topology", "paying", *changed, "--explain"),
        ("replay", "--range", "1:3", *changed),
        ("replay", "--range", "1:3", *changed, "--as", "markdown"),
        ("replay", "--file", "run.jsonl", *changed),
        ("replay", run, *changed, "--mode", "hybrid"),
        ("eval", "--metric", "exact_match", *changed, "--topology", "paying", "--junit", "eval.xml", "--all"),
        ("eval", "--metric", "exact_match", *changed, "--topology", "paying", "--as", "markdown", "--all"),
        ("fork", run, "--at", "refuse", "--set", "size:=9", "--diff"),
        ("fork", run, "--at", "ask", "--set", "reply=no", "--diff"),
        ("fork", run, "--at", "ask", "--set", "card=five", "--diff"),
    )
    assert "size" in said
    assert (folder / "eval.xml").exists()
    files = "".join(file.read_text() for file in (folder / "eval.xml", folder / "run.jsonl"))
    assert _around(said + files) == []


@pytest.mark.long
def test_what_an_optimizer_writes_and_a_shadow_tells_does_not_say_what_is_secret(paying: Paying) -> None:
    project = paying.project
    rows = [{"text": f"from {CANARY}", "card": CANARY, "reply": "yes", "code": CANARY} for _ in range(6)]
    project.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    job = ("optimize", "paying/ask", "--metric", "exact_match", "--data", "rows.jsonl")
    made = project.here(*job, "--pool", "lightweight", "--anyway", "--save", "learned", "-o", "made.json")
    assert (made.code, "has a marker in place of what is secret" in made.err) == (0, True), made
    file = (project.folder / "made.json").read_text()
    assert SECRET in file
    with project.start("--json", "shadow", "changed:topology", "--sample", "100%", "--topology", "paying") as shadow:
        shadow.until('"begun"')
        project.here("publish", project.input, "text=shadowed", f"card={CANARY}", "--wait", "60s")
        shadow.until('"compared"')
        assert shadow.end() == 0, shadow.errors()
        told = "".join(shadow.lines) + shadow.errors()
    said = paying.said(("programs", "show", "paying/ask", "--state", "learned"))
    assert _around(said + made.out + made.err + file + told) == []


@pytest.mark.long
def test_what_is_told_over_http_and_to_a_collector_does_not_say_what_is_secret(paying: Paying) -> None:
    run, bad = paying.runs["good"], paying.runs["bad"]
    asked = [f"/v1/runs/{one}?tree=true&outputs=true" for one in paying.runs.values()]
    asked += [f"/v1/runs/{run}/events", f"/v1/runs/{bad}/events", f"/v1/runs/{run}/diff?with={bad}"]
    asked += [f"/v1/{what}" for what in ("runs", "letters", "letters/groups", "approvals", "topologies", "status", "windows")]
    asked += ["/v1/sessions", "/v1/sessions/talk", "/openapi.json", "/asyncapi.json"]
    with httpx.Client(base_url=paying.url, timeout=60) as http:
        answers = [http.get(path) for path in asked]
        answers.append(http.post(f"/v1/runs/{run}/replay", json={}))
        answers.append(http.post(f"/v1/runs/{run}/fork", json={"at": "refuse", "outputs": {"size": 9}}))
    assert [answer.status_code for answer in answers if answer.status_code not in (200, 201)] == []
    said = "".join(answer.text for answer in answers)
    assert said.count(SECRET) > 10
    paying.collector.until(1, "process ")
    assert _around(said + str(paying.collector.spans) + str(paying.collector.metrics)) == []


def _around(said: str) -> list[str]:
    """What stands around the secret, wherever it does."""
    return [f"…{before[-200:]}(HERE){after[:80]}…" for before, after in _cuts(said)]


def _cuts(said: str) -> list[tuple[str, str]]:
    parts = said.split(CANARY)
    return list(pairwise(parts))
