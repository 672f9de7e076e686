"""Exactly once, with real processes that really die: a server, two engines, a pool, and a stand-in for the model's server.

Short versions; `scripts/chaos` has the long ones.
"""

from __future__ import annotations

import asyncio
import sys

import psutil
import pytest
import run
from oracle import Report

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(180),  # on a busy machine; alone they take 10 to 30 s
    pytest.mark.skipif(sys.platform != "linux", reason="the processes are made to die with the test by Linux's prctl"),
]


def chaos(*arguments: str) -> Report:
    """A run with these arguments of run.py. Nothing is left behind."""
    before = running()  # a server that other tests of this session share
    planned = run.planned(run.parser().parse_args(["--timeout", "150", *arguments]))
    report = asyncio.run(planned.go())
    assert report.good, str(report)
    assert [p.cmdline() for p in running() - before] == []
    return report


def running() -> set[psutil.Process]:
    """The processes below this one."""
    return {p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE}


@pytest.mark.parametrize("target", ["none", "engine", "worker", "server", "all"])
def test_killed_processes_lose_and_double_nothing(target: str) -> None:
    report = chaos("--events", "300", "--kills", "3", "--latency", "0.02", "--target", target, "--seed", "11")
    assert report.numbers["faults"] == dict.fromkeys(run.TARGETS[target], 3)


def test_an_engine_that_was_taken_over_commits_nothing_more_and_says_why() -> None:
    report = chaos("--events", "400", "--kills", "2", "--latency", "0.05", "--target", "take-over", "--seed", "12")
    assert report.numbers["fenced, and said so"] > 0


def test_commits_that_land_after_their_timeout_are_neither_lost_nor_doubled() -> None:
    report = chaos("--events", "300", "--kills", "2", "--latency", "0.05", "--target", "freeze-server", "--seed", "13")
    assert report.numbers["claims"] > run.workload.PARTITIONS


def test_engines_that_die_between_the_parts_of_an_event_lose_and_double_none() -> None:
    report = chaos("--events", "40", "--big", "8", "--kills", "6", "--target", "parts", "--seed", "14")
    assert report.numbers["outputs"] >= 8 * run.workload.OUTPUTS_OF_BIG


def test_connections_that_are_cut_in_a_message_lose_and_double_nothing() -> None:
    chaos("--events", "300", "--kills", "2", "--latency", "0.05", "--target", "wire", "--seed", "15")
