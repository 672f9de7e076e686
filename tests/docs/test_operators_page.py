"""docs/operators.md says what the declarations say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MAKE: dict[str, Any] = runpy.run_path(str(ROOT / "docs/make/operators.py"))


def test_the_page_of_operators_is_what_the_declarations_give() -> None:
    assert MAKE["PAGE"].read_text() == MAKE["page"](), "run: python docs/make/operators.py"


def test_every_operator_and_every_option_of_the_page_says_what_it_means() -> None:
    for line in MAKE["page"]().splitlines():
        if line.startswith("| `"):
            cells = line.strip("| ").split(" | ")
            assert len(cells) == 4, line
            assert cells[3], line
