"""An application behind its gateway: a real server, an engine, a pool, and a stand-in for the model's server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cli_bench import Project, stand_in
from standin import StandIn

from dspex.bus.local.launch import free_port

TOPOLOGY = """
dspex: 1
topology: support
sources: {{ {u}.in: {{}} }}
nodes:
  classify: {{ from: {u}.in, predict: "text -> kind: Literal['good','bad'], urgency: int", retry: {{ attempts: 1 }} }}
  check: {{ from: classify, approve: {{}}, show: [text] }}
  draft: {{ from: check, predict: "text -> reply", retry: {{ attempts: 1 }} }}
sinks:
  {u}.out: {{ from: draft }}
"""
COUNTS = """
dspex: 1
topology: counts
sources: {{ {u}.ticks: {{ time: at }}, {u}.names: {{}} }}
nodes:
  by_customer: {{ from: {u}.ticks, key_by: customer }}
  minutes: {{ from: by_customer, window: 1m, count: {{}} }}
  first: {{ from: {u}.names, dedupe: name, within: 1h }}
sinks: {{ {u}.counts: {{ from: minutes }}, {u}.firsts: {{ from: first }} }}
"""
SETTINGS = """
topologies = ["support.yaml", "counts.yaml"]
engine.submit = true
pools.lightweight = {{ size = 1, slots = 4 }}
lm.main = {{ model = "openai/stand-in", base_url = "{url}", price = {{ input = 1.0, output = 2.0 }} }}
[budgets.day]
profile = "main"
cost = 50.0
per = "day"
[http]
subjects = ["{u}.in", "{u}.hooks.*", "{u}.names", "{u}.ticks"]
calls = {{ classify = "support/classify", draft = "support/draft", chat = "question, history: dspy.History -> answer" }}
max_body = "64KiB"
[http.hooks]
issues = {{ scheme = "github", secret_env = "HOOK_SECRET", subject = "{u}.in" }}
[calls.site]
token_env = "SITE_TOKEN"
calls = ["draft", "chat"]
subjects = ["{u}.in"]
[calls.few]
token_env = "FEW_TOKEN"
calls = ["*"]
requests = "2/day"
[calls.one]
token_env = "ONE_TOKEN"
calls = ["*"]
concurrent = 1
[calls.looker]
token_env = "LOOKER_TOKEN"
read = true
[calls.operator]
token_env = "OPERATOR_TOKEN,OLD_TOKEN"
calls = ["*"]
subjects = ["*"]
operate = true
"""
TOKENS = {f"{name.upper()}_TOKEN": f"secret-{name}" for name in ("site", "few", "one", "looker", "operator", "old")}


def as_(name: str) -> dict[str, str]:
    """The header of who asks."""
    return {"Authorization": f"Bearer secret-{name}"}


@contextmanager
def served(folder: Path, nats_url: str, model: StandIn) -> Iterator[Project]:
    """A project whose topology, pool and gateway run; `project.env["GATEWAY"]` says where."""
    with stand_in(model) as url:
        u, port = f"g{os.urandom(5).hex()}", free_port(None)
        env = {**TOKENS, "HOOK_SECRET": "of the hook", "NATS_URL": nats_url, "GATEWAY": f"http://127.0.0.1:{port}"}
        made = Project(folder, u, SETTINGS.format(url=url, u=u), **env)
        made.write("support.yaml", TOPOLOGY.format(u=u))
        made.write("counts.yaml", COUNTS.format(u=u))
        with made.start("run", "--http", f"127.0.0.1:{port}", "--profile", "profile.json") as run:
            run.until("ready in")
            yield made
            assert run.end() == 0, run.errors()


@pytest.fixture(scope="session")
def model() -> StandIn:
    """The model of `project`. What others asked may still be answered: count requests by their text, `model.texts`."""
    return StandIn()


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, nats_url: str, model: StandIn) -> Iterator[Project]:
    """As `served`, one for all files: what a test looks for in it is its own, found by the id of its run."""
    with served(tmp_path_factory.mktemp("gateway"), nats_url, model) as made:
        yield made


@pytest.fixture
def http(project: Project) -> Iterator[httpx.Client]:
    """Asks the gateway; who asks is said by each request."""
    with httpx.Client(base_url=project.env["GATEWAY"], timeout=60) as client:
        yield client
