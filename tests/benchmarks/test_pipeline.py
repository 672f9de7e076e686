"""`scripts/bench pipeline`: each part runs and gives what it compares. How fast anything is, is no matter here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # scripts of that folder import each other by name

import pipeline  # noqa: E402

SMALL = ["--events", "100", "--rounds", "1", "--entries", "20", "--idle-seconds", "1", "--peers", "limit,dspex"]


@pytest.mark.long
@pytest.mark.timeout(200)
def test_every_part_gives_figures_for_all_that_it_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "IDLE", (4,))
    monkeypatch.setattr(sys, "argv", ["pipeline.py", *SMALL, "--json", "--out", str(tmp_path / "out.json")])
    pipeline.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out.json").read_text()) == found
    middle = found["medians"]
    assert {part: list(middle[part]) for part in middle} == {
        "throughput": ["limit", "dspex"],
        "cpu": ["engine", "bus"],
        "processes": ["1", "2"],
        "sealed": ["in clear text", "sealed"],
        "start": ["empty log", "snapshot and 20 entries"],
        "idle": ["4"],
    }
    assert set(found["ratios"]) == {"throughput", "cpu", "processes", "sealed"}
    assert all(cost["engine"] < cost["process"] for cost in middle["start"].values())
    assert all(cost["requests"] > 0 for cost in middle["idle"].values())
    assert middle["cpu"]["bus"] < middle["cpu"]["engine"]


def test_a_table_is_shown_for_what_was_measured_and_for_nothing_else() -> None:
    middle = {"cpu": {"engine": 30.0, "bus": 20.0}}
    args = argparse.Namespace(rounds=3, events=1000)
    lines = pipeline.tables(middle, pipeline.ratios(middle), args)
    assert lines[-2].split() == ["engine", "30.0", "1.50x", "(goal:", "at", "most", "1.5)"]
    assert "peer" not in "".join(lines)
    assert "idle" not in "".join(lines)


@pytest.mark.parametrize("option", ["--parts", "--peers"])
def test_a_part_or_a_peer_that_is_not_there_is_refused_by_name(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline.py", option, "dspex,speed"])
    with pytest.raises(SystemExit) as ended:
        pipeline.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {option}: there is no " in said
    assert "(there is: " in said
