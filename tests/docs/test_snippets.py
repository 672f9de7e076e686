"""The README and docs/: Python runs, settings and topologies load, commands exist, and some give exactly what the page shows.

A block is known by its fence. In one page all blocks share a folder and a name space, in order:

    ```python          runs, and then each function `test_…` in it that takes nothing; if its first line is `# name.py` it is
                       that file too. With `connect(` it needs an application: the one whose dspex.toml lies in the working
                       directory is run, with a stand-in for its model
    ```toml / yaml     is that file, and loads as settings or as a topology
    ```console         every `$ command` exists, with these options
    ```console run     its commands are run, and print what the page shows
"""

from __future__ import annotations

import json
import linecache
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cli_bench import in_this_process, kept_logging

from dspex import Settings, Topology
from dspex.engine.cli import app
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.operators import stateless

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted([*DOCS.glob("*.md"), *DOCS.glob("guides/*.md")])]
BLOCK = re.compile(r"^```(\w+)[ ]*(\w*)\n(.*?)^```$", re.S | re.M)
NAMED = re.compile(r"# ([\w.]+\.(?:py|yaml|toml))\n")
OTHER_PROGRAMS = {"cd", "git", ".", "docker", "export", "grep", "deploy/make_secrets"}  # commands of others: not ours to check
ENVIRONMENT = re.compile(r"[A-Z_]+=\S*$")


@dataclass(frozen=True)
class Block:
    language: str
    mode: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        found = NAMED.match(self.text)
        return found[1] if found else None

    @property
    def commands(self) -> list[tuple[str, str]]:
        """(command, what the page shows behind it)"""
        parts = re.split(r"^\$ ", self.text, flags=re.M)
        assert parts[0] == "", f"line {self.line}: a console block begins with a command"
        return [(command, shown) for command, _, shown in (part.partition("\n") for part in parts[1:])]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1], m[2], m[3], text[: m.start()].count("\n") + 1) for m in BLOCK.finditer(text)]


@pytest.fixture
def folder(
    tmp_path: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A folder that Python imports from, an environment without settings; imports and logging as before at the end."""
    if "adding-an-operator" in request.node.name:  # its files belong among the operators
        monkeypatch.setattr(stateless, "__path__", [*stateless.__path__, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    with kept_logging():
        yield tmp_path
    for name in set(sys.modules) - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


class Application:
    """`dspex run` in the working directory, on a server of its own, with a stand-in for every model of the settings."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        if self._processes:
            return
        url = json.loads(self._started(str(ROOT / "tests/support/standin.py")))["url"]
        env = {"DSPEX_LM__MAIN__MODEL": "openai/stand-in", "DSPEX_LM__MAIN__BASE_URL": url, "DSPEX_SERVER__LOCAL__PORT": "-1"}
        self._started("-m", "dspex", "run", "--json", until='"event":"ready"', env=env)

    def _started(self, *command: str, until: str = "", env: dict[str, str] | None = None) -> str:
        """Start it; the line that says it is ready."""
        with open("started.log", "a") as log:
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                [sys.executable, *command], stdin=pipe, stdout=pipe, stderr=log, text=True, env={**os.environ, **(env or {})}
            )
        self._processes.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if until in line:
                return line
        raise AssertionError(f"{' '.join(command)} ended:\n{Path('started.log').read_text()}")

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture
def application() -> Iterator[Application]:
    found = Application()
    yield found
    found.stop()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_code_of_a_documentation_page_does_what_the_page_says(page: Path, folder: Path, application: Application) -> None:
    space: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        if block.file:
            Path(block.file).write_text(block.text)
        if block.language == "python":
            if "connect(" in block.text:
                application.start()
            run_python(block, place, space)
        elif block.language == "toml":
            Settings.load(Path(block.file) if block.file else written(block, "settings.toml"))
        elif block.language == "yaml":
            assert [str(p) for p in Topology.load(block.file or written(block, "t.yaml")).check()] == [], place
        elif block.language == "console":
            for command, shown in block.commands:
                check_command(command, place)
                if block.mode == "run":
                    run_command(command, shown, place)
        else:
            assert block.language in ("text", "mermaid", "json"), f"{place}: what is {block.language}?"


def written(block: Block, name: str) -> Path:
    Path(name).write_text(block.text)
    return Path(name)


def run_python(block: Block, place: str, space: dict[str, Any]) -> None:
    tests = re.findall(r"^def (test_\w+)\(\)", block.text, re.M)
    if "import dspy" in block.text:  # in a process of its own; one without tests is imported by those or by a worker
        name = Path(str(block.file)).stem
        calls = "".join(f"; {name}.{test}()" for test in tests)
        if tests:
            subprocess.run([sys.executable, "-c", f"import {name}{calls}"], check=True, timeout=60)
        return
    linecache.cache[place] = (len(block.text), None, block.text.splitlines(keepends=True), place)
    exec(compile(block.text, place, "exec"), space)
    for test in tests:
        space[test]()


# -- commands ------------------------------------------------------------------------------------------------------
def check_command(command: str, place: str) -> None:
    """Every part of the command line is ours and exists, or is known to be somebody else's."""
    for part in re.split(r"\s+(?:&&|\|)\s+", command):
        words = shlex.split(part, comments=True)
        while words and ENVIRONMENT.match(words[0]):
            words.pop(0)
        if words[0] == "dspex":
            parse(words[1:], place)
        elif words[0].startswith("scripts/"):
            assert os.access(ROOT / words[0], os.X_OK), f"{place}: {words[0]}"
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), f"{place}: {words[1]}"
        else:
            assert words[0] in OTHER_PROGRAMS, f"{place}: {command}"


def parse(arguments: list[str], place: str) -> None:
    """Let the real command line read the arguments, and stop before it does anything."""
    if arguments in (["--version"], ["-h"]) or arguments[-1] == "-h":
        return
    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    command: Any = typer.main.get_command(app.assemble(Terminal()))
    context, rest = None, app.globals_first(arguments)
    try:
        while hasattr(command, "commands"):
            context = command.make_context("dspex", rest, parent=context)
            _, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context("dspex", rest, parent=context)
    except usage_error as e:
        raise AssertionError(f"{place}: dspex {' '.join(arguments)}: {e}") from e


def run_command(command: str, shown: str, place: str) -> None:
    """Run it, and hold what it prints against the page."""
    words = shlex.split(command, comments=True)
    if words[0] == "cd":
        os.chdir(words[1])
        return
    assert words[0] == "dspex", f"{place}: {command}"
    done = in_this_process(*words[1:])
    printed = "\n".join(line.rstrip() for line in (done.out + done.err).splitlines())
    assert printed == shown.rstrip("\n"), f"{place}: {command}"


def test_every_documentation_page_is_reached_from_the_index() -> None:
    pages = {f.relative_to(DOCS).as_posix() for f in PAGES if f.is_relative_to(DOCS)}
    linked = set(re.findall(r"\]\(((?:guides/)?[\w-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert pages - {"README.md"} == linked


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_of_the_documentation_leads_to_a_page(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
