"""What `dspex bench native` promises: comparable figures, of equal results only, in a form that scripts can read.

No test here looks at a time: what a machine does in a moment is no promise.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from dspex import __main__ as cli
from dspex.bus.errors import DspexError
from dspex.bus.memory.server import MemoryServer
from dspex.workers.bench import native_side, runs
from dspex.workers.bench.cases import GROUPS, Case, cases, same
from dspex.workers.bench.worker import Worker

KEYS = [
    *("v", "operation", "group", "p50_us", "p99_us", "rate", "peer", "peer_p50_us", "peer_p99_us"),
    *("ratio", "target", "met", "worker_p50_us", "worker_p99_us", "wire_us", "reason", "note"),
]
NEVER_TWICE = ("signature", "all new")  # each run has fields of other names
NAMES = [case.name for case in cases()]


def measured(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and verdict of a very short run."""
    assert cli.main(["bench", "native", "--json", "--quiet", "--seconds", "0.001", *options]) == 0
    *rows, verdict = map(json.loads, capsys.readouterr().out.splitlines())
    return rows, verdict


@pytest.mark.parametrize("case", cases(), ids=NAMES)
def test_both_sides_of_every_operation_give_the_same(dspy: Any, case: Case) -> None:
    from dspex.workers.dspy import bench as dspy_side

    ours, expected = native_side.build(case), dspy_side.plain(case, dspy_side.build(case)(case.data))
    found = native_side.plain(case, ours(case.data))
    assert same(found, expected), (found, expected)
    if case.kind not in NEVER_TWICE:
        assert same(native_side.plain(case, ours(case.data)), expected), "what comes from a cache is the same"


def test_operations_have_names_of_their_own_and_known_groups() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert {case.group for case in cases()} | {"predict"} == set(GROUPS)
    assert [case.name for case in cases() if case.target is None and case.peer == "dspy"] == []


@pytest.mark.asyncio
async def test_different_results_are_not_compared(dspy: Any) -> None:
    nobody = Worker(MemoryServer().connect())
    differs = Case("1e+20", "template", "template", {"x": 1e20}, peer="jinja2", options={"text": "{{ x }}"})
    with pytest.raises(DspexError, match="not compared"):
        await runs.row(differs, 0.001, nobody)
    assert not same({"a": 5}, {"a": 5.0})
    assert not same({"a": 1}, {"a": True})


@pytest.mark.long
def test_a_run_beside_dspy_prints_a_row_for_each_operation(dspy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows, verdict = measured(capsys, "--against", "dspy", "--only", "signature,predict")
    assert [list(row) for row in rows] == [KEYS] * len(rows)
    assert {row["group"] for row in rows} == {"signature", "predict"}
    numbers = ("p50_us", "p99_us", "rate", "peer_p50_us", "peer_p99_us", "ratio", "worker_p50_us", "worker_p99_us")
    assert all(row[key] > 0 for row in rows for key in numbers if row["group"] != "predict"), rows
    # what the wire takes is taken off, which on a busy machine may leave nothing
    assert all(row["wire_us"] > 0 and row["peer_p50_us"] >= 0 for row in rows if row["group"] == "predict"), rows
    assert all(row["met"] is (row["ratio"] >= row["target"]) for row in rows if row["ratio"] is not None)
    assert list(verdict) == ["v", "goals", "met", "missed", "versions"]
    assert verdict["goals"] == verdict["met"] + len(verdict["missed"]) == sum(row["met"] is not None for row in rows)
    assert {"python", "dspex", "dspy", "pydantic"} <= set(verdict["versions"])


def test_without_a_peer_nothing_of_dspy_is_imported_and_no_goal_is_judged() -> None:
    code = (
        "import sys; from dspex.__main__ import main; "
        "main(['bench', 'native', '--json', '--quiet', '--seconds', '0.001', '--only', 'signature,predict']); "
        "sys.exit('dspy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *rows, verdict = map(json.loads, done.stdout.splitlines())
    assert all(row["p50_us"] is not None for row in rows)
    assert {(row["peer"], row["peer_p50_us"], row["ratio"], row["met"]) for row in rows} == {("", None, None, None)}
    assert verdict["goals"] == 0


def test_without_dspy_it_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dspy", None)  # as Python marks a module that cannot be imported
    monkeypatch.delitem(sys.modules, "dspex.workers.dspy.bench", raising=False)  # another test may have imported it
    assert cli.main(["bench", "native", "--against", "dspy"]) == 2
    said = capsys.readouterr().err
    assert "DX109" in said
    assert "pip install 'dspex[dspy]'" in said


@pytest.mark.parametrize(("option", "word"), [("--only", "parsing"), ("--against", "langchain")])
def test_bench_refuses_an_unknown_group_or_peer(capsys: pytest.CaptureFixture[str], option: str, word: str) -> None:
    assert cli.main(["bench", "native", option, word]) == 2
    assert word in capsys.readouterr().err
