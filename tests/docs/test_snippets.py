"""The README and docs/: Python runs, settings and topologies load, commands exist, and give what the page shows.

A block is known by its fence. In one page all blocks share a folder and a name space, in order:

    ```python            runs, and then each function `test_…` in it that takes nothing; if its first line is `# name.py` it is
                         that file too. With `connect(` it needs an application: the one whose dspex.toml lies in the working
                         directory is run, with a stand-in for its model
    ```toml / yaml       is that file, and loads as settings or as a topology; `# name_test.yaml`: the cases in it pass
    ```csv name          is that file
    ```console           every `$ command` exists, with these options
    ```console run NAME  its commands are run (in the project NAME), and print what the page shows: see docs/make/outputs.py
"""

from __future__ import annotations

import json
import linecache
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
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
MAKE: dict[str, Any] = runpy.run_path(str(DOCS / "make/outputs.py"))
PAGES: list[Path] = MAKE["PAGES"]
LONG = (
    "guides/programs.md",
    "guides/runs.md",
    "operations.md",
    "start/tutorial.md",
    "testing.md",
)  # they start pools and engines
ANSWERS = {"intent": "card_arrival", "wish": "refund"}  # what the model of the pages says for these fields
OTHER_PROGRAMS = {"cd", "git", ".", "docker", "export", "grep", "deploy/make_secrets"}  # commands of others: not ours to check
PATIENCE = 30  # looks at what is as old as an engine's heartbeat
ENVIRONMENT = re.compile(r"[A-Z_]+=\S*$")


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
    """`dspex run` in the working directory, on a server of its own, with a stand-in for the model of the settings."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._processes: list[subprocess.Popen[str]] = []

    def model(self) -> None:
        """Start the stand-in; from now on, commands use it, and servers take any port."""
        if not self._processes:
            said = self._started(str(ROOT / "tests/support/standin.py"), "--answers", json.dumps(ANSWERS))
            env = {
                "LM__MAIN__MODEL": "openai/stand-in",
                "LM__MAIN__BASE_URL": json.loads(said)["url"],
                "SERVER__LOCAL__PORT": "-1",
            }
            for name, value in env.items():
                self._patch.setenv(f"DSPEX_{name}", value)

    def run(self, words: list[str]) -> str:
        """What it prints until it is ready."""
        self.model()
        return self._started("-m", "dspex", *words, until=MAKE["READY"])

    @property
    def runs(self) -> bool:
        return len(self._processes) > 1

    def _started(self, *command: str, until: str = "") -> str:
        """Start it; the lines up to the one that says it is ready."""
        with open("started.log", "a") as log:
            pipe = subprocess.PIPE
            process = subprocess.Popen([sys.executable, *command], stdin=pipe, stdout=pipe, stderr=log, text=True)
        self._processes.append(process)
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if until in line:
                return "".join(lines)
        raise AssertionError(f"{' '.join(command)} ended:\n{Path('started.log').read_text()}")

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture
def application(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    found = Application(monkeypatch)
    yield found
    found.stop()


@pytest.fixture
def shell(folder: Path, application: Application) -> Iterator[Any]:
    """What runs commands in this process."""
    found = MAKE["Shell"](folder, in_process, application.run)
    yield found
    found.stop()


def in_process(words: list[str]) -> str:
    if words[0] == "server":  # what it starts outlives it
        command = [sys.executable, "-m", "dspex", *words]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60).stdout
    done = in_this_process("--no-progress", *words)
    return done.out + done.err


def tried(page: Path) -> Any:
    name = page.relative_to(ROOT).as_posix()
    return pytest.param(page, id=name, marks=[pytest.mark.long] if name.removeprefix("docs/") in LONG else [])


@pytest.mark.parametrize("page", [tried(page) for page in PAGES])
def test_a_documentation_page_does_and_prints_what_it_says(page: Path, application: Application, shell: Any) -> None:
    space: dict[str, Any] = {"__name__": "page"}
    for block in MAKE["blocks"](page):
        place = f"{page.name}:{block.line}"
        if block.file:
            Path(block.file).write_text(block.text)
        if block.language == "python":
            if "connect(" in block.text and not application.runs:
                application.run(["run"])
            run_python(block, place, space)
        elif block.language == "toml":
            Settings.load(Path(block.file) if block.file else written(block, "settings.toml"))
        elif block.language == "yaml" and str(block.file).endswith("_test.yaml"):
            assert in_process(["test", block.file]).endswith(" 0 failed\n"), place
        elif block.language == "yaml":
            assert [str(p) for p in Topology.load(block.file or written(block, "t.yaml")).check()] == [], place
        elif block.language == "console":
            for command, shown in block.commands:
                check_command(command, place)
                assert block.mode == "run" or not shown or page.parent.name == "benchmarks", f"{place}: made by what?"
            if block.mode == "run":
                run_commands(shell, block, application, place)
        else:
            assert block.language in ("text", "mermaid", "csv"), f"{place}: what is {block.language}?"


def written(block: Any, name: str) -> Path:
    Path(name).write_text(block.text)
    return Path(name)


def run_python(block: Any, place: str, space: dict[str, Any]) -> None:
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


def run_commands(shell: Any, block: Any, application: Application, place: str) -> None:
    """Run them, and hold what they print against the page."""
    if block.project:
        application.model()
    with shell.within(block):
        for command, shown in block.commands:
            want, seen = MAKE["steady"](shown), ""
            for _ in range(PATIENCE if command.startswith("dspex status") else 1):
                seen = MAKE["steady"](shell.prints(command))
                if seen == want:
                    break
            assert seen == want, f"{place}: {command}"


def test_every_documentation_page_is_reached_from_the_index() -> None:
    pages = {f.relative_to(DOCS).as_posix() for f in PAGES if f.is_relative_to(DOCS)}
    linked = set(re.findall(r"\]\(((?:guides/|start/)?[\w-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert pages - {"README.md"} == linked


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_of_the_documentation_leads_to_a_page(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
