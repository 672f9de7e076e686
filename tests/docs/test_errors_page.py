"""docs/errors.md says what the code does: every code, and every error class."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MAKE: dict[str, Any] = runpy.run_path(str(ROOT / "docs/make/errors.py"))


def codes_in_source() -> set[str]:
    files = [f for room in ("bus", "engine", "operators", "workers", "topologies") for f in (ROOT / room).rglob("*.py")]
    return {code for f in [*files, ROOT / "__main__.py"] for code in re.findall(r'"(DX\d{3})"', f.read_text())}


def test_the_errors_page_is_up_to_date() -> None:
    assert MAKE["PAGE"].read_text() == MAKE["page"](), "run: python docs/make/errors.py"


def test_every_error_code_is_on_its_page_once_and_no_other() -> None:
    listed = [row[0] for row in MAKE["rows"]()]
    assert sorted(listed) == sorted(codes_in_source())


def test_what_the_page_says_is_never_raised_is_raised_nowhere() -> None:
    rooms = ("bus", "engine", "operators", "workers", "topologies")
    text = "\n".join(f.read_text() for room in rooms for f in (ROOT / room).rglob("*.py"))
    assert [name for name in MAKE["NOT_RAISED"] if re.search(rf"raise {name}\b", text)] == []


def test_every_error_code_says_when_it_is_raised_and_what_to_do() -> None:
    for code, _, when, fix in MAKE["rows"]():
        assert when.endswith("."), code
        assert fix, code
        assert "|" not in when + fix, f"{code}: a table cell"
