"""`dspex demo`: real server, engines and workers, with a stand-in for the model; and as a user types it, with the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_bench import kept_logging
from standin import StandIn, intent
from waiting import eventually

from dspex.engine.cli.demo.demo import DemoRun, samples, settings
from dspex.engine.cli.demo.printed import Printed
from dspex.engine.cli.terminal import log
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.topologies.support_examples import Nearest, load
from dspex.workers.models import weights

NOT_INSTALLED = "the local model is not installed: dspex model install smollm2"
needs_model = pytest.mark.skipif(
    not weights.installed(weights.find("smollm2")) or not find_spec("xllamacpp"), reason=NOT_INSTALLED
)
DEMO = [sys.executable, "-m", "dspex", "demo", "--json", "--each", "1"]
MODEL = "dspex.workers.models.server"
INTENTS = ["card_arrival", "lost_card", "exchange_rate", "top_up_failed", "refund_missing"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Settings around the demo that it must not care about."""
    (tmp_path / "dspex.toml").write_text('app = "not-the-demo"\n[server]\nurl = "nats://nobody.invalid:4222"\n')
    return {**os.environ, "NATS_URL": "nats://nobody.invalid:4222"}


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that works in the folder, or names it: the demo's server, engine, pool, workers and model."""
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and _belongs(p, folder)]


def _belongs(p: psutil.Process, folder: Path) -> bool:
    try:
        return str(folder) in " ".join(p.cmdline()) or p.cwd() == str(folder)
    except psutil.Error:
        return False


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    _, alive = psutil.wait_procs(processes_of(tmp_path), timeout=60)
    for p in alive:
        p.kill()
    assert alive == []


def rows(out: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in out.splitlines()]
    assert all(row.pop("v") == 1 for row in found)
    return found


async def played(model: StandIn) -> None:
    """Play the demo in the working directory, with this model."""
    lm = {"main": {"model": "openai/stand-in", "base_url": model.url}}
    with kept_logging():
        log.configure("error", quiet=False)  # as the verb does: the second act runs an engine in this process
        assert await DemoRun(settings(Path.cwd(), lm, {}), Printed(Terminal(json=True)), samples(1)).play(60)


@pytest.mark.long
@pytest.mark.asyncio
async def test_the_demo_kills_its_engine_and_loses_nothing_and_asks_the_model_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], nothing_left: None
) -> None:
    monkeypatch.chdir(tmp_path)
    async with StandIn(latency=0.2) as model:
        model.bodies = []
        await played(model)
        stats = model.stats()
    assert (stats["requests"], stats["distinct"], stats["repeated"]) == (6, 6, 0)

    found = rows(capsys.readouterr().out)
    *_, last, replayed, forked = found
    events = [row.get("event") or (row.get("intent") and "answer") or row.get("went_to", "summary") for row in found]
    first_half = [*["dead letter"] * 2, *["answer"] * 2, "engine killed", "engine started"]  # as they land
    assert events == [*first_half, *["answer"] * 3, "redriven", "answer", "summary", "replayed", "forked"]
    assert all(row["why"].startswith("validate: the data does not fit Message") for row in found[:2])
    killed, started = (next(row for row in found if row.get("event") == f"engine {what}") for what in ("killed", "started"))
    assert killed["pid"] != started["pid"]
    assert not psutil.pid_exists(killed["pid"])
    assert started["answers"] >= 1  # that no engine was there for

    figures = last["summary"]
    assert [figures[k] for k in ("sent", "out", "dead", "lost", "twice")] == [7, 6, 1, 0, 0]
    assert figures["made"] == figures["recorded"] == figures["needed"] == 6
    assert (replayed["same"], replayed["served"], replayed["called"], replayed["tokens"]) == (True, 1, 0, 0)
    assert (forked["parent"], forked["called"], forked["tokens"]) == (replayed["run"], 0, 0)
    assert {(step["step"], step["field"]) for step in forked["diff"]["steps"]} >= {("classify#0", "intent")}
    answered = {row["text"]: row for row in found if row.get("intent")}
    assert {text: row["intent"] for text, row in answered.items()} == {text: intent(text, INTENTS) for text in answered}
    assert figures["right"] == sum(row["intent"] == row["expected"] for row in answered.values())
    assert (figures["labelled"], figures["most_frequent"], figures["examples"]) == (5, 1, 200)
    _demands_three_most_similar_examples(model)


def _demands_three_most_similar_examples(model: StandIn) -> None:
    """What the model was asked: nothing of a label but those of the examples, of which the most similar stands last."""
    assert model.bodies is not None
    for body in model.bodies:
        _, *shown, asked = [message["content"] for message in body["messages"]]
        text = asked.split("[[ ## text ## ]]\n")[1].split("\n\n")[0]
        nearest = Nearest(load()).of(text, 3)[::-1]
        assert len(shown) == 6
        for example, question, reply in zip(nearest, shown[::2], shown[1::2]):
            assert example.text in question
            assert example.intent in reply


@pytest.mark.long
@pytest.mark.model
@needs_model
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_a_demo_that_is_stopped_leaves_no_process(
    tmp_path: Path, environment: dict[str, str], nothing_left: None, number: signal.Signals
) -> None:
    demo = subprocess.Popen(DEMO, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    if number == signal.SIGKILL:  # while the model is asked
        eventually(lambda: [p for p in psutil.Process(demo.pid).children(recursive=True) if MODEL in " ".join(p.cmdline())])
    else:  # after the first answer
        row = next(row for row in map(json.loads, demo.stdout) if row.get("intent"))
        assert row["intent"] in INTENTS
        assert row["tokens"] > 100
    demo.send_signal(number)
    _, err = demo.communicate(timeout=60)
    assert demo.returncode in (128 + number, -number)
    assert "Traceback" not in err


def test_without_the_model_the_demo_says_what_to_type(tmp_path: Path, environment: dict[str, str], nothing_left: None) -> None:
    done = subprocess.run(
        DEMO[:4], cwd=tmp_path, env=environment | {"DSPEX_CACHE": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error[DX131]")
    assert "fix: dspex model install smollm2" in done.stderr
