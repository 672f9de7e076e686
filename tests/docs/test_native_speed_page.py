"""benchmarks/README.md has each operation of `dspex bench native` that DSPy does too, and says why one is below ten times."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

from dspex.workers.bench import predict
from dspex.workers.bench.cases import cases
from dspex.workers.bench.rows import REASONS

MAKE: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "docs/make/native_speed.py"))
SECTION: str = MAKE["MARK"].search(MAKE["PAGE"].read_text())[0]
SLOW: list[list[str]] = [
    line.strip("| ").split(" | ") for line in SECTION.splitlines() if re.match(r"\| \S.* \| [\d.,]+ \|", line)
]
FAST: list[str] = re.findall(r"^\* (.+)$", SECTION, re.MULTILINE)


def test_the_page_names_every_operation_once() -> None:
    compared = [case.name for case in cases() if case.peer == "dspy"] + predict.names()
    assert sorted([row[0] for row in SLOW] + FAST) == sorted(compared), "run: python docs/make/native_speed.py"


def test_every_operation_below_ten_times_has_its_figures_and_its_reason() -> None:
    for name, ours, theirs, ratio, why in SLOW:
        assert why == REASONS[name]
        assert float(ratio) < MAKE["TEN"]
        assert abs(float(theirs.replace(",", "")) / float(ours.replace(",", "")) - float(ratio)) < 0.1, name
