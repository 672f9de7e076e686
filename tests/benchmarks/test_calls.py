"""`scripts/bench calls`: it gives what it compares, and counts time as it says. How fast anything is, is no matter here."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts of that folder import each other by name

import calls
from calling.load import Coroutines
from calling.one import full


@pytest.mark.long
@pytest.mark.asyncio
async def test_each_part_gives_figures_for_the_raw_request_and_for_dspex(capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["1", "64", "half", "even"]  # all kinds of them, but the slots, which need a pool for each number
    args = argparse.Namespace(seconds=0.2, rounds=1, systems=["raw", "direct"], parts=parts, processes=1)
    figures, failed = await calls.measure(args)
    assert failed == {}
    assert {name: set(rows) for name, rows in figures.items()} == {"raw": set(parts), "direct": set(parts)}
    used = {name: list(rows["1"][0]["cpu"]) for name, rows in figures.items()}
    assert used == {
        "raw": ["client", "server", "worker"],
        "direct": ["client", "server", "worker", "worker: children"],
    }
    lines = calls.tables(calls.medians(figures))
    assert [line.split()[0] for line in lines if line] == [
        "one",
        "raw",
        "direct",
        "64",
        "raw",
        "direct",
        "half",
        "raw",
        "direct",
        "150",
        "raw",
        "direct",
    ]
    assert "direct, half: " in capsys.readouterr().err


def test_a_table_shows_each_beside_the_raw_request_and_beside_celery() -> None:
    row = {"p50": 1.0, "p99": 2.0, "rate": 4000.0, "kept": 1.0, "cpu": {"client": 50.0, "worker": 70.0}}
    slow = {**row, "p50": 3.0, "rate": 1000.0}
    middle: dict[str, dict[str, Any]] = {"raw": {"1": row, "16": row}, "celery": {"1": slow, "16": slow}}
    late = {"half": {**row, "kept": 0.5, "due": 300.0, "of core": 0.0625}}
    assert "      0.06  too much: calls were left over" in calls.tables({"direct": late})[1]
    lines = calls.tables({**middle, "slots": {"32": {**row, "rate": 240.0}}})
    assert lines[1].split() == ["raw", "1.00", "2.00", "1.00x", "0.33x", "-"]
    assert lines[6].split() == ["celery", "1,000", "2.00", "0.25x", "1.00x", "-", "client", "50,", "worker", "70"]
    assert lines[-1].split() == ["32", "240", "0.75", "client", "0.01,", "worker", "0.02"]
    crowd = calls.tables({"crowd": {"0": row, "64": {**row, "p99": 3.0}}})
    assert [line.split() for line in crowd[1:]] == [["0", "1.00", "2.00", "1.00x"], ["64", "1.00", "3.00", "1.50x"]]


@pytest.mark.long
@pytest.mark.asyncio
async def test_streamed_calls_are_measured_beside_a_raw_stream_and_a_reader_that_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "STREAMS", 5)
    found = await calls.streams(0.05, 1)
    assert 0 < found["accepted"]["p50"] <= found["first"]["p50"]
    assert found["raw"]["p50"] > 0
    lines = calls.shown_streams(found)
    assert [line.split()[0] for line in lines if line] == ["one", "a", "first", "first", "5", "alone", "beside"]


def test_a_peer_that_is_not_there_is_named_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "redis-server" in calls.missing("celery")
    assert calls.missing("raw") == ""


@pytest.mark.long
@pytest.mark.asyncio
async def test_a_system_that_fails_is_named_and_the_others_are_measured(capfd: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(seconds=0.05, rounds=1, systems=["raw"], parts=["1", "none"], processes=1)
    figures, failed = await calls.measure(args)
    assert list(figures["raw"]) == ["1"]
    assert failed == {"raw": "its process ended with 1; what it said is above"}
    assert "ValueError" in capfd.readouterr().err


@pytest.mark.asyncio
async def test_a_call_counts_from_when_it_was_due_where_the_client_comes_late() -> None:
    asked = list[str]()

    async def ask(text: str) -> str:
        end = time.perf_counter() + (0.0 if asked else 0.1)
        asked.append(text)
        while time.perf_counter() < end:  # the first one keeps the client from sending the others
            pass
        return text

    took = await Coroutines(ask).on_schedule(200.0, 0.2)
    assert len(asked) > 10
    assert took.latencies[1] > 0.05


@pytest.mark.asyncio
async def test_what_is_answered_behind_the_end_of_a_schedule_was_not_kept() -> None:
    opened = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, opened.set)

    async def ask(text: str) -> str:
        await opened.wait()
        return text

    took = await Coroutines(ask).on_schedule(1000.0, 0.1)
    assert took.latencies
    assert took.kept == 0.0


@pytest.mark.asyncio
async def test_calls_that_begin_one_after_the_other_count_from_when_all_have_begun() -> None:
    began = list[float]()

    async def ask(text: str) -> str:
        loop = asyncio.get_running_loop()
        began.append(loop.time())
        answered = loop.create_future()
        loop.call_later(0.05, answered.set_result, text)
        return str(await answered)

    took = await Coroutines(ask).spread(4, 0.2, 0.2)
    assert took.seconds == 0.2
    assert began[1] - began[0] >= 0.04
    assert len(took.latencies) < len(began)  # those that were answered before all had begun are not counted


@pytest.mark.asyncio
async def test_a_wrong_answer_ends_the_measurement() -> None:
    async def ask(text: str) -> str:
        return "something else"

    with pytest.raises(ExceptionGroup) as failed:
        await Coroutines(ask).in_flight(2, 0.1)
    assert "'something else'" in str(failed.value.exceptions[0])


def test_a_core_is_full_when_the_busiest_process_fills_one_or_all_of_them_fill_all() -> None:
    assert full({"client": [100.0], "server": [50.0], "worker: children": [20.0, 20.0]}, cores=2) == 10_000
    assert full({"client": [100.0], "server": [100.0], "worker": [100.0]}, cores=2) == pytest.approx(6667, abs=1)
