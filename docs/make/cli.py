"""Write docs/start/verbs.md from the command line itself: `python docs/make/cli.py`. A test holds the page to it.

What is not built is read from bus/settings/not_built.py, like the list in docs/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from dspex.bus.settings import not_built as planned
from dspex.engine.cli import app
from dspex.engine.cli.terminal.terminal import Terminal

PAGE = Path(__file__).parents[1] / "start/verbs.md"
_OF_EVERYTHING = ("help", "install_completion", "show_completion")
_LIST, _TYPE = re.compile(r" <list\[\w+\]>"), re.compile(r" <(?:str|path|Path|int|float)>")
HEAD = """# All verbs

This page is made from the command line by `docs/make/cli.py`; `-h` behind a verb prints the same.
Options of all verbs may stand anywhere. Results go to stdout; logs, progress and errors to stderr.
With `--json` each result is an object a line, with `"v": 1`.

| exit | meaning |
|---|---|
| 0 | done; for `run` and `worker`: drained |
| 1 | a negative answer: a call, a run or tests failed, runs differ, `plan --exit-code` found changes, `doctor` found a fault |
| 2 | usage or settings |
| 3 | the topology is not valid, or does not go with the one that is applied |
| 4 | NATS cannot be reached, is too old, or does not allow it |
| 5 | busy: trying later may help |
| 6 | a replay differs, or a recording is not whole |
| 130, 143 | ended by ^C (SIGINT) or SIGTERM; of what drains first (`run`, `worker`, `gateway`) by a second one |"""


def cell(text: object) -> str:
    """A text in a table."""
    return str(text or "").replace("|", "\\|").replace("\n", " ")


def rows(command: Any, context: Any) -> Iterator[str]:
    """The arguments and options of a verb, one a row, as help has them."""
    with context.scope(cleanup=False):
        for one in command.get_params(context):
            record = None if one.name in _OF_EVERYTHING else one.get_help_record(context)
            if record is not None:
                name = _LIST.sub("…", _TYPE.sub("", record[0])).replace("<int range>", "N")
                yield f"| `{cell(name)}` | {cell(record[1])} |"


def part(words: str, command: Any, context: Any) -> Iterator[str]:
    """What is said of a verb."""
    yield from ["", f"### {words}", "", " ".join((command.help or "").split())]
    if found := list(rows(command, context)):
        yield from ["", "| | |", "|---|---|", *found]
    if missing := planned.VERB_OPTIONS.get(words):
        yield from ["", f"Not built: {', '.join(f'`{name}`' for name in sorted(missing))}."]


def page() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(app.assemble(Terminal()))
    context = root.make_context("dspex", ["check"])
    lines = [HEAD, "", "## Options of all verbs", "", "| | |", "|---|---|", *rows(root, context)]
    for heading, words in app.VERBS.items():
        lines += ["", f"## {heading}"]
        for word in words:
            command = root.get_command(context, word)
            inside = getattr(command, "commands", None)
            if inside is None:
                lines += part(word, command, context)
            else:
                for name, verb in inside.items():
                    lines += part(f"{word} {name}", verb, context)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
