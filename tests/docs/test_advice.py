"""What dspex advises exists: the verbs and options of its command line, and the values of its options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import typer.main

from dspex.bus.codecs import Codec
from dspex.bus.records import Adapter, OnError, Route
from dspex.bus.settings import not_built
from dspex.engine.cli import app
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.engine.graph.nodes import OnGap
from dspex.operators.typing.names import Extra

ROOT = Path(__file__).parents[2]
OF_OTHERS = {  # of every command; and options of nsc, nats, pip and uv, which dspex prints or runs
    "--help",
    "--from",
    *("--metadata", "--allow-pub-response", "--response-ttl", "--name", "--allow-pub", "--allow-sub"),
    *("--no-deps", "--only-binary", "--disable-pip-version-check"),
}
VALUES = {
    "route": Route,
    "codec": Codec,
    "on_gap": OnGap,
    "on_error": OnError,
    "adapter": Adapter,
    "extra": Extra,
}
PROSE = {
    "and",
    "at",
    "costs",
    "has",
    "holds",
    "import",
    "is",
    "keeps",
    "looks",
    "makes",
    "needs",
    "reads",
    "starts",
    "topology",
}
"""What follows the word where it is no command."""
_VERB = re.compile(r"\bdspex ([a-z]+)(?: ([a-z]+))?")


@cache
def texts() -> list[tuple[str, str]]:
    """The texts in the code that are no docstrings, with their places."""
    return list(_texts())


def _texts() -> Iterator[tuple[str, str]]:
    for room in ("bus", "engine", "operators", "workers", "topologies"):
        for file in (ROOT / room).rglob("*.py"):
            tree = ast.parse(file.read_text())
            nodes = list(ast.walk(tree))
            docs = {id(n.value) for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
            for node in nodes:
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    yield path, {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    if hasattr(command, "list_commands"):
        context = command.make_context("dspex", [], resilient_parsing=True)
        for name in command.list_commands(context):  # each verb is loaded when it is asked for
            yield from commands(command.get_command(context, name), (*path, name))


def test_verbs_and_options_in_messages_are_there() -> None:
    known = dict(commands(typer.main.get_command(app.assemble(Terminal()))))
    groups = {path[0] for path in known if len(path) == 2}
    planned = {option for options in not_built.VERB_OPTIONS.values() for option in options}
    options = set().union(*known.values()) | planned | OF_OTHERS
    wrong = []
    for place, text in texts():
        for verb, more in _VERB.findall(text):
            path = (verb, more) if verb in groups and more else (verb,)
            if path not in known and verb not in PROSE:
                wrong.append(f"{place}: dspex {' '.join(path)}")
        wrong += [f"{place}: {o}" for o in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text) if o not in options]
    assert wrong == []


def test_values_of_options_in_messages_are_taken() -> None:
    pattern = re.compile(rf'\b({"|".join(VALUES)})="([a-z_]+)"')
    found = [(place, *match) for place, text in texts() for match in pattern.findall(text)]
    assert len(found) > 5
    assert [f for f in found if f[2] not in get_args(VALUES[f[1]])] == []
