"""`dspex demo` as a user types it: a real server, engine, worker and language model, and nothing left of them at the end."""

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

from dspex.engine.cli.demo import DEAD, TRIAGED, URGENT, samples
from dspex.workers.models import weights

NOT_INSTALLED = "the local model is not installed: dspex model install smollm2"
needs_model = pytest.mark.skipif(
    not weights.installed(weights.find("smollm2")) or not find_spec("xllamacpp"), reason=NOT_INSTALLED
)
DEMO = [sys.executable, "-m", "dspex", "demo", "--json", "--count", "3"]


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


@pytest.mark.model
@needs_model
def test_the_demo_accounts_for_every_message_and_leaves_no_process_twice(
    tmp_path: Path, environment: dict[str, str], nothing_left: None
) -> None:
    runs: set[str] = set()
    for _ in range(2):
        done = subprocess.run(DEMO, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        *messages, last = rows(done.stdout)
        assert [m["text"] for m in messages] == [s["text"] for s in samples()[:3]]
        assert {m["went_to"] for m in messages} <= {URGENT, TRIAGED, DEAD}
        assert messages[0]["went_to"] == URGENT  # the rule beside the model
        assert all(m["tokens"] > 0 and m["ms"] > 0 for m in messages)
        assert (last["summary"]["messages"], last["summary"]["missing"], last["summary"]["calls"]) == (3, 0, 3)
        runs |= {m["run"] for m in messages}
        assert psutil.wait_procs(processes_of(tmp_path), timeout=60)[1] == []
    assert len(runs) == 6


@pytest.mark.model
@needs_model
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_demo_that_is_stopped_leaves_no_process(
    tmp_path: Path, environment: dict[str, str], nothing_left: None, number: signal.Signals
) -> None:
    long = [*DEMO, "--count", "40"]  # the last one counts: it must not be through when the signal comes
    demo = subprocess.Popen(long, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert demo.stderr is not None
    for line in demo.stderr:
        if line.startswith("pool "):
            break
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
