"""The pages name files that exist, and link to pages that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = {"benchmarks/results"}  # by running something
ROOMS = ("bus", "engine", "operators", "workers", "topologies", "tests", "benchmarks", "scripts", "docs")


def missing(page: Path) -> Iterator[str]:
    text = page.read_text()
    for path in re.findall(rf"\b(?:{'|'.join(ROOMS)})/[\w/.-]*\w", text):
        near = (ROOT / path).parent.glob(f"{(ROOT / path).name}*")  # a folder, a file, a file without its suffix
        if path not in MADE and not any(near):
            yield path
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", text):
        if not (page.parent / link).exists():
            yield link


def test_every_file_and_page_that_the_documentation_names_exists() -> None:
    assert {page.name: found for page in PAGES if (found := sorted(missing(page)))} == {}
