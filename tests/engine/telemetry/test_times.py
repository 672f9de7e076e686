"""Time per operator: measured where somebody asks, and otherwise no step is longer for it."""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cli_bench import NATIVE, Project
from engine_lab import Lab

from dspex.bus.local.launch import free_port
from dspex.engine.cli.figures import blocks
from dspex.engine.client.status.operators import is_sound
from dspex.engine.runtime.walk import timing
from dspex.engine.runtime.walk.timing import NodeTimes
from dspex.operators.topology import Topology

SIMPLE = 'topologies = ["native.yaml"]\nserver.local = { port = -1 }\n'


@pytest.fixture
def lab() -> Iterator[Callable[..., Lab]]:
    made: list[Lab] = []

    def make(topology: Topology) -> Lab:
        made.append(Lab(topology))
        return made[-1]

    yield make
    for one in made:
        one.close()


def lengthened(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "size": len(data["text"])}


def simple() -> Topology:
    topology = Topology("timed")
    topology.source("in").map(lengthened, name="size").filter("size > 1", name="long").sink("out")
    return topology


def windowed() -> Topology:
    topology = Topology("windows")
    topology.source("in").key_by("text", name="by").window("10s").count(name="count").sink("out")
    return topology


def test_an_operator_takes_what_passes_until_the_next_begins_and_after_that_has_ended(lab: Callable[..., Lab]) -> None:
    times, one = NodeTimes(count().__next__), lab(simple())  # a clock that is a second on with each look
    one.start(times=times)
    one.publish("in", {"text": "hello"})
    one.publish("in", {"text": "x"})
    one.advance(1.5)
    found = {row.node: (row.handled, row.seconds) for row in times.report()}
    # Two seconds of each event that goes on: until the next one, and after it. One of an event that ends there.
    assert found == {"in": (2, 4.0), "size": (2, 4.0), "long": (2, 3.0), "out": (1, 1.0)}


def test_status_has_the_times_of_all_engines_and_shows_them_with_their_share(lab: Callable[..., Lab]) -> None:
    one = lab(simple())
    one.start(times=NodeTimes(count().__next__))
    one.publish("in", {"text": "hello"})
    one.advance(2.5)
    status = one.run(one.client.status())
    rows = {row["node"]: row for row in status["operators"]}
    assert (rows["size"]["handled"], rows["size"]["seconds"]) == (1, 2.0)
    (block,) = [block for block in blocks(status) if "share" in block.columns]
    assert {row["operator"]: row["share"] for row in block.rows}["timed/out"] == "14.3%"
    assert not [block for block in blocks(status) if "p50" in block.columns]  # of operators that make no calls, nothing else


def test_a_window_that_ends_takes_its_time_at_its_operator(lab: Callable[..., Lab]) -> None:
    times, one = NodeTimes(count().__next__), lab(windowed())
    one.start(times=times)
    for seconds in (0, 0, 60, 60):
        one.advance(seconds)
        one.publish("in", {"text": "a"})
    one.advance(5)
    found = {row.node: row for row in times.report()}
    assert found["count"].handled == 4
    assert found["out"].handled >= 1
    assert found["count"].seconds > found["count"].handled  # its events, and its end


def test_an_operator_that_fails_hands_the_clock_back(lab: Callable[..., Lab]) -> None:
    times, topology = NodeTimes(count().__next__), Topology("failing")
    topology.source("in").map(lengthened, name="size").sink("out")
    one = lab(topology)
    one.start(times=times)
    one.publish("in", {"no": "text"})
    one.publish("in", {"text": "hello"})
    one.advance(1.5)
    assert {row.node: row.handled for row in times.report()}["size"] == 2
    assert times.within(("failing", "size"), lambda: "on") == "on"


@pytest.mark.parametrize("measured", [False, True])
def test_where_nobody_asks_no_function_is_called_more(lab: Callable[..., Lab], measured: bool) -> None:
    """Calls of Python functions, counted while an event is handled: of those that measure there is none."""
    one = lab(simple())
    one.start(**({"times": NodeTimes()} if measured else {}))
    called = Counter[str]()

    def count_calls(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            called[frame.f_code.co_filename] += 1

    one.publish("in", {"text": "hello"})
    sys.setprofile(count_calls)
    try:
        one.advance(1.5)
    finally:
        sys.setprofile(None)
    of_times = called[timing.__file__]
    assert (of_times > 0) == measured
    assert "operators" in {Path(name).stem for name in called}  # else it counted nothing of what handles events


def test_what_no_engine_can_have_measured_is_no_report() -> None:
    row = {"topology": "t", "node": "n", "p50": None, "cost": None, "handled": 1, "seconds": -1.0}
    assert not is_sound({"operators": [row], "stages": []})  # type: ignore[typeddict-item]


@pytest.mark.long
def test_run_with_profile_says_at_the_end_what_each_operator_took(tmp_path: Path, unique: str) -> None:
    port = free_port(None)
    project = Project(tmp_path, unique, SIMPLE + f'telemetry.metrics = "127.0.0.1:{port}"\n')
    project.write("native.yaml", NATIVE.format(u=unique))
    with project.start("run", "--pools", "none", "--profile", "times.jsonl") as run:
        run.until("ready in")
        for text in ("hello", "more"):
            assert project.publish(f"text={text}").code == 0
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            scraped = answer.read().decode()
        assert run.end(signal.SIGTERM) == 0
    rows = [json.loads(line) for line in (tmp_path / "times.jsonl").read_text().splitlines()]
    handled = {row["node"]: row["handled"] for row in rows}
    assert (handled["check"], handled["count"]) == (2, 2)
    assert all(row["seconds"] > 0 for row in rows)
    assert abs(sum(row["share"] for row in rows) - 1) < 0.01
    assert any("native/check" in line and "%" in line for line in run.lines)
    assert re.search(r'^dspex_node_events_total\{node="check",.*\} 2\.0$', scraped, re.MULTILINE)
    assert 'dspex_node_duration_seconds_total{node="count"' in scraped


@pytest.mark.parametrize(("args", "why"), [(["no/folder/x"], "cannot be written"), (["x", "--processes", "2"], "one process")])
def test_a_profile_that_cannot_be_made_is_refused_before_anything_runs(
    tmp_path: Path, unique: str, args: list[str], why: str
) -> None:
    project = Project(tmp_path, unique, SIMPLE)
    project.write("native.yaml", NATIVE.format(u=unique))
    error = project.here("--json", "run", "--pools", "none", "--profile", *args).error()
    assert (error["code"], why in error["message"]) == ("DX105", True)
