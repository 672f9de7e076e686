"""docs/start/verbs.md says what the command line says of itself, and the guide for coding agents what the pages say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MAKE: dict[str, Any] = runpy.run_path(str(ROOT / "docs/make/cli.py"))


def test_the_page_of_verbs_is_what_the_command_line_gives() -> None:
    assert MAKE["PAGE"].read_text() == MAKE["page"](), "run: python docs/make/cli.py"


def test_every_verb_and_every_option_of_the_page_says_what_it_is_for() -> None:
    lines = MAKE["page"]().splitlines()
    for above, line in zip(lines, lines[2:], strict=False):
        if line.startswith("| `"):
            assert line.split(" | ")[1].strip("| "), line
        if above.startswith("### "):
            assert line, above


def test_the_guide_for_coding_agents_is_what_the_pages_give() -> None:
    skill = runpy.run_path(str(ROOT / "docs/make/skill.py"))
    assert skill["GUIDE"].read_text() == skill["guide"](), "run: python docs/make/skill.py"
