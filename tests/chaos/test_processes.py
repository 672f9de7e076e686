"""Exactly once, with real processes that really die: a server, two engines, a pool, and a stand-in for the model's server.

One short run, so that the machinery keeps working (`scripts/test --long`); the scenarios are run by `scripts/chaos`.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

import full
import psutil
import pytest
import talking
from processes import soaking

pytestmark = [
    pytest.mark.no_cover,
    pytest.mark.skipif(sys.platform != "linux", reason="the processes are made to die with the test by Linux's prctl"),
]


def descendants() -> set[psutil.Process]:
    """The living processes below this one."""
    return {p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE}


@pytest.mark.long
def test_killed_engines_workers_and_servers_lose_and_double_nothing() -> None:
    before = descendants()  # a server that other tests of this session share
    report = full.judged("--events 60 --kills 1 --target all --engines 1 --size 1 --seed 11 --latency 0.02 --timeout 150")
    assert report.good, str(report)
    assert [p.cmdline() for p in descendants() - before] == []


@pytest.mark.long
def test_a_session_survives_the_death_of_its_worker_its_engine_and_its_server() -> None:
    report = asyncio.run(talking.talk(3, 1, seed=1))
    assert report.good, str(report)
    assert {"worker", "engine", "server"} <= report.numbers["faults"].keys()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_nothing_grows_and_all_is_counted_while_calls_windows_and_sessions_go_on() -> None:
    soak = soaking.Soak(soaking.parser().parse_args(["--minutes", "0.6", "--every", "4", "--kills-every", "12"]))
    report = asyncio.run(soak.go())
    assert report.good, str(report)
    assert soak.faults.total() == 2
    assert min(soak.sent, soak.turns, len(soak.windows), len(soak.measured)) > 0


def test_a_soak_sees_what_grows_and_what_is_lost_or_doubled() -> None:
    soak = soaking.Soak(soaking.parser().parse_args([]))
    flat = {"rss": 300 << 20, "files": 80, "consumers": 10, "bytes": 20 << 20, "lag": 5}
    soak.measured = [{**flat, "files": 80 + 30 * n} for n in range(12)]
    assert [violation.promise for violation in soak.grown()] == ["files stay flat"]
    soak.sent, soak.came, soak.windows = 3, Counter({0: 1, 1: 2}), {("a", 0): 2}
    soak.judge()
    promises = [violation.promise for violation in soak.found]
    assert promises == ["nothing is lost", "nothing is doubled", "windows count each event once"]


def test_the_documentation_lists_every_scenario() -> None:
    page = (Path(__file__).parents[2] / "docs/testing.md").read_text()
    assert [name for name in full.scenarios() if f"`{name}`" not in page] == []
