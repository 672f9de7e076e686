"""`dspex test`: YAML cases on the testing driver."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dspex.bus.errors import ConfigError
from dspex.bus.local.whole_file import write
from dspex.engine.cli.terminal.client import count
from dspex.engine.cli.terminal.terminal import Terminal, terminal, to_json
from dspex.engine.cli.topology.targets import load_one, search
from dspex.engine.graph.defaults import with_defaults

if TYPE_CHECKING:
    from dspex.engine.cli.topology.cases import TestFile
    from dspex.engine.cli.topology.playing import Outcome
    from dspex.engine.graph.graph import Graph
    from dspex.engine.testing.driver import Faults

_PATTERNS = ("*_test.yaml", "*_test.yml")


class BusName(StrEnum):
    """Where the cases run."""

    memory = "memory"
    nats = "nats"


def test(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", help="Test files, or folders of *_test.yaml; this folder by default.")
    ] = None,
    expression: Annotated[str, typer.Option("-k", metavar="EXPR", help="Cases whose names have it: a and not (b or c).")] = "",
    bus: Annotated[BusName, typer.Option("--bus", help="In memory, or on a server that is started for it.")] = BusName.memory,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Decides every choice and every fault.")] = 0,
    faults: Annotated[str, typer.Option("--faults", metavar="SPEC", help="What goes wrong: duplicate=0.1,delay=50ms.")] = "",
    update: Annotated[
        bool, typer.Option("--update", help="Write what came into the files, where they expect another.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON Schema of test files, for editors.")] = False,
) -> None:
    """Run the cases of test files on a virtual clock, without a model; exit 1 where one fails."""
    t = terminal(context)
    if schema:
        from dspex.engine.cli.topology.schema import cases_schema

        t.document(to_json(cases_schema()))
        return
    selected, options = wanted(expression), {"seed": seed, "bus": bus.value, "faults": faults_of(faults)}
    files = [_loaded(t, path) for path in _found(paths or [Path()])]
    number = sum(selected(case.id) for file in files for case in file.cases)
    if not number:
        fix = "dspex test without -k runs all" if expression else "add one under cases:"
        raise ConfigError(f"no case of {count(len(files), 'file')} is to be run", code="DX139", fix=fix)
    outcomes = [outcome for file in files for outcome in _run(t, file, selected, update, options)]
    failed = sum(1 for o in outcomes if o.failures)
    passed = len(outcomes) - failed
    for o in outcomes:
        _tell(t, o)
    t.emit({"passed": passed, "failed": failed}, f"{passed} passed, {failed} failed")
    if failed:
        raise typer.Exit(1)


# -- what to run -------------------------------------------------------------------------------------------------------
def _found(paths: Sequence[Path]) -> list[Path]:
    """The test files, each once. Raises ConfigError (DX139) where there is none."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.suffix == ".py":
            raise ConfigError(f"{path} is Python: dspex test runs YAML", code="DX139", fix=f"pytest {path}")
        if not path.is_dir():
            found[path] = None
            continue
        inside = sorted(p for pattern in _PATTERNS for p in path.rglob(pattern))
        found |= dict.fromkeys(p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts))
    if not found:
        where = ", ".join(str(p.resolve()) for p in paths)
        raise ConfigError(f"there is no test file in {where}", code="DX139", fix=f"name one, or call it {_PATTERNS[0]}")
    return list(found)


def _loaded(t: Terminal, path: Path) -> TestFile:
    from dspex.engine.cli.terminal import log
    from dspex.engine.cli.topology.cases import load

    settings = t.settings()
    search(settings)
    log.configure("error", verbosity=t.verbosity, quiet=not t.verbosity)  # what goes wrong in a case is what the case is about
    defaults = settings.defaults.call.options()

    def topologies(targets: Sequence[str]) -> list[Graph]:
        return [with_defaults(load_one(target).graph, defaults, settings.timeouts) for target in targets]

    return load(path, topologies)


def wanted(expression: str) -> Callable[[str], bool]:
    """Whether an id is one that -k asks for: words that it has, in any case of letters, with and, or, not and brackets.

    Raises ConfigError (DX105) for what is no such expression.
    """
    tokens = re.findall(r"[()]|[^\s()]+", expression.lower())
    if not tokens:
        return lambda id: True
    made = _Expression(tokens, expression)
    found = made.either()
    if made.tokens:
        made.refuse()
    return lambda id: found(id.lower())


class _Expression:
    """Reads an expression from left to right; each method gives a function of an id."""

    def __init__(self, tokens: list[str], text: str) -> None:
        self.tokens, self._text = tokens, text

    def refuse(self) -> None:
        rest = self.tokens[0] if self.tokens else "its end"
        fix = "words, joined by and, or, not and brackets: -k 'draft and not slow'"
        raise ConfigError(f"-k {self._text!r} cannot be read at {rest}", code="DX105", fix=fix)

    def _next(self, *words: str) -> bool:
        if self.tokens and self.tokens[0] in words:
            self.tokens.pop(0)
            return True
        return False

    def either(self) -> Callable[[str], bool]:
        parts = [self._both()]
        while self._next("or"):
            parts.append(self._both())
        return lambda id: any(part(id) for part in parts)

    def _both(self) -> Callable[[str], bool]:
        parts = [self._one()]
        while self._next("and"):
            parts.append(self._one())
        return lambda id: all(part(id) for part in parts)

    def _one(self) -> Callable[[str], bool]:
        if self._next("not"):
            part = self._one()
            return lambda id: not part(id)
        if self._next("("):
            inside = self.either()
            if not self._next(")"):
                self.refuse()
            return inside
        words: list[str] = []
        while self.tokens and self.tokens[0] not in ("and", "or", "not", "(", ")"):
            words.append(self.tokens.pop(0))
        if not words:
            self.refuse()
        return lambda id: " ".join(words) in id


def faults_of(spec: str) -> Faults:
    """Faults as --faults says them. Raises ConfigError (DX105)."""
    from dspex.engine.testing.driver import Faults

    given: dict[str, Any] = {}
    for part in filter(None, spec.split(",")):
        name, _, value = part.strip().partition("=")
        try:
            given[name] = float(value)
        except ValueError:
            given[name] = value
    return Faults.of(given)


# -- running -----------------------------------------------------------------------------------------------------------
def _run(
    t: Terminal, file: TestFile, selected: Callable[[str], bool], update: bool, options: dict[str, Any]
) -> Iterator[Outcome]:
    """Run the cases of a file, each told as it ends."""
    from dspex.engine.cli.topology.playing import play
    from dspex.engine.cli.topology.renewal import rewritten

    renewals = []
    for case in file.cases:
        if not selected(case.id):
            continue
        outcome = play(case, file.graphs, update=update, **options)
        said = "failed" if outcome.failures else "passed"
        if update and outcome.renewals and len(outcome.renewals) == len(outcome.failures):
            renewals += outcome.renewals
            outcome.failures, said = [], "updated"
        found = {"file": case.file, "case": case.name, "line": case.line, "outcome": said, "seconds": round(outcome.seconds, 3)}
        failures = [{"line": f.line, "message": f.message, "fix": f.fix} for f in outcome.failures]
        t.emit({**found, "failures": failures}, f"{case.id} {said.upper()}")
        yield outcome
    if renewals:
        write(file.path, rewritten(file.text, renewals).encode())


def _tell(t: Terminal, outcome: Outcome) -> None:
    """Why a case failed, for people."""
    if outcome.failures:
        t.line("")
        t.line(outcome.case.name)
    for failure in outcome.failures:
        for text in f"{outcome.case.file}:{failure.line}: {failure.message}".splitlines():
            t.line(text)
        if failure.fix:
            t.line(f"  fix: {failure.fix}")
