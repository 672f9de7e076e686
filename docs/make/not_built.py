"""Write what is not built into docs/README.md: `python docs/make/not_built.py`. A test holds the page to the code."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from dspex.bus.settings import not_built as planned

PAGE = Path(__file__).parents[1] / "README.md"
HEAD = "## What is not built yet"
MARK = re.compile(rf"{HEAD}\n.*?(?=\n## |\Z)", re.DOTALL)


def words(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def section() -> str:
    """All of it, by where a user would type it."""
    verbs = [f"{option} of {verb}" for verb, options in planned.VERB_OPTIONS.items() for option in sorted(options)]
    options = [f"{option} of {what}" for what, names in planned.OPTIONS.items() for option in names]
    values = [f"{option}={value!r}" for option, names in planned.CHOICES.items() for value in names]
    rows = {
        "operators": planned.OPERATORS,
        "options of operators": [*options, *values],
        "names to import": planned.NAMES,
        "verbs of the command line": sorted(planned.VERBS),
        "options of verbs": verbs,
        "settings": sorted(planned.SETTINGS),
    }
    lines = [f"| {what} | {words(names)} |" for what, names in rows.items()]
    about = "Whoever uses one of these is told that it is not built (`DX108`, `DX237`, or `AttributeError`): none is ignored."
    return "\n".join([HEAD, "", about, "", "| what | names |", "|---|---|", *lines]) + "\n"


def page() -> str:
    """The whole page."""
    return MARK.sub(lambda _: section(), PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
