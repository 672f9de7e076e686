"""Test files: YAML cases of `dspex test`, read and checked as a whole before any of them runs.

    topology: triage.yaml
    cases:
      urgent messages get a draft:
        - answer:  { classify: { intent: lost_card, urgency: 5 } }
        - publish: { support.messages: { customer: c1, text: stolen! } }
        - expect:  { support.urgent: [ { intent: lost_card } ] }

A step is one verb with what it is about, and options beside it, which are named as those of `Driver`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from dspex.bus.errors import ConfigError, Problem, TopologyError
from dspex.bus.settings.duration import seconds
from dspex.engine.cli.topology.steps import CRASHES, DECISIONS, FAILURES, LOOKS, OPTIONS, STEPS, countable, time_of
from dspex.engine.testing.names import TestedNames
from dspex.operators.formats.yaml_read import Mapped, read
from dspex.operators.native.problems import did_you_mean

if TYPE_CHECKING:
    from dspex.engine.graph.graph import Graph

CODE: Final = "DX139"
BEGIN: Final = "topology: triage.yaml"


@dataclass(frozen=True)
class CaseStep:
    """One thing that a case does. `number`: in its case, from 0. `about`: what stands behind the verb."""

    verb: str
    about: Any
    options: Mapping[str, Any]
    line: int
    number: int


@dataclass(frozen=True)
class TestCase:
    """One test: a driver of its own, and steps in their order."""

    file: str
    name: str
    line: int
    steps: Sequence[CaseStep]

    @property
    def id(self) -> str:
        return f"{self.file}::{self.name}"


@dataclass
class TestFile:
    """One file of cases.

    Attributes:
        path: as it was found. graphs: of the topologies that its cases run together.
    """

    path: Path
    text: str
    graphs: Sequence[Graph] = ()
    cases: list[TestCase] = field(default_factory=list[TestCase])
    problems: list[Problem] = field(default_factory=list[Problem])

    def report(self, line: int, message: str, fix: str) -> None:
        """Note what is wrong in a line."""
        self.problems.append(Problem(CODE, "error", str(self.path), None, str(self.path), line, message, fix))


def load(path: Path, topologies: Callable[[Sequence[str]], Sequence[Graph]]) -> TestFile:
    """The cases of a file. `topologies`: loads those of some targets.

    Raises ConfigError (DX139) with all that is wrong in the file, TopologyError for its topologies.
    """
    file = TestFile(path, _text(path))
    document = _document(file)
    for key in document:
        if key not in ("topology", "cases"):
            file.report(document.at(key), f"there is no key {key!r} here", did_you_mean(key, ("topology", "cases")))
    if targets := _targets(file, document):
        file.graphs = topologies(targets)
        _Reader(file, TestedNames(file.graphs)).cases(document)
    if file.problems:
        raise _error(file.problems)
    return file


def _error(problems: Sequence[Problem]) -> ConfigError:
    text = "; ".join(f"{p.file}:{p.line}: {p.message}" for p in problems)
    return ConfigError(text, code=CODE, fix=problems[0].fix, problems=problems)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}", code=CODE, fix="correct the path") from e
    except UnicodeDecodeError as e:
        message = f"{path} is not text in UTF-8: {e.reason} at byte {e.start}"
        raise ConfigError(message, code=CODE, fix="save it as UTF-8") from e


def _document(file: TestFile) -> Mapped:
    try:
        return read(file.text, str(file.path), "a test file", BEGIN)
    except TopologyError as e:  # it is no topology that is wrong
        raise _error([replace(p, code=CODE) for p in e.problems]) from e


def _targets(file: TestFile, document: Mapped) -> list[str]:
    """What `topology` names, files beside this one."""
    given: Any = document.get("topology")
    names = given if isinstance(given, list) else [given]
    if not names or not all(isinstance(n, str) for n in names):
        file.report(document.at("topology"), "the file does not say which topology it tests", BEGIN)
        return []
    return [os.path.normpath(file.path.parent / n) if n.endswith((".yaml", ".yml")) else n for n in names]


@dataclass
class _Reader:
    """Reads the cases of a file, and notes every problem with its line."""

    file: TestFile
    names: TestedNames

    def cases(self, document: Mapped) -> None:
        found = document.get("cases")
        if not isinstance(found, Mapped) or not found:
            self.file.report(document.at("cases"), "there are no cases", "cases: { NAME: [ STEP, ... ] }")
            return
        for name, steps in found.items():
            line = found.at(name)
            if not isinstance(steps, list) or not steps:
                self.file.report(line, f"case {name!r} has no steps", "- publish: { SUBJECT: { FIELD: VALUE } }")
                continue
            read_steps = [s for i, step in enumerate(cast("Sequence[object]", steps)) if (s := self.step(step, line, i))]
            self.file.cases.append(TestCase(str(self.file.path), name, line, read_steps))

    def step(self, step: object, line: int, number: int) -> CaseStep | None:
        verbs = [k for k in step if k in STEPS] if isinstance(step, Mapped) else []
        if not isinstance(step, Mapped) or len(verbs) != 1:
            self.file.report(*_no_step(step, line, verbs))
            return None
        (verb,) = verbs
        allowed, how = STEPS[verb]
        for key in step:
            if key != verb and key not in allowed:
                known = (*allowed, *STEPS)
                self.file.report(step.at(key), f"{verb} takes no {key!r}", did_you_mean(key, known))
        options = {k: self.option(k, v, step.at(k)) for k, v in step.items() if k in allowed}
        read_step = CaseStep(verb, step[verb], options, step.at(verb), number)
        getattr(self, f"_{verb}")(read_step, how)
        return read_step

    def option(self, name: str, value: Any, line: int) -> Any:
        if name == "after":
            return self.duration(value, line)
        if name == "at" and isinstance(value, str):
            value = time_of(value)
        right, how = OPTIONS[name]
        if not right(value):
            self.file.report(line, f"{name} cannot be {value!r}", how)
        return value

    def duration(self, value: Any, line: int) -> Any:
        with self.told(line):
            return seconds(value)

    @contextmanager
    def told(self, line: int) -> Generator[None]:
        """What the block raises is a problem of this line."""
        try:
            yield
        except ConfigError as e:
            self.file.report(line, e.message, e.fix)

    def mapping(self, step: CaseStep, how: str) -> Iterator[tuple[str, Any, int]]:
        """Each key of what a step is about, its value, and its line."""
        if not isinstance(step.about, Mapped) or not step.about:
            self.file.report(step.line, f"{step.verb} cannot be {step.about!r}", how)
            return
        for key, value in step.about.items():
            yield key, value, step.about.at(key)

    # -- what each step is about
    def _answer(self, step: CaseStep, how: str) -> None:
        for node, outputs, line in self.mapping(step, how):
            with self.told(line):
                self.names.call(node)
            if not isinstance(outputs, Mapped):
                self.file.report(line, f"an answer of {node} is a mapping of its outputs, and this is {outputs!r}", how)

    def _fail(self, step: CaseStep, how: str) -> None:
        for node, error, line in self.mapping(step, how):
            with self.told(line):
                self.names.call(node)
            if not isinstance(error, str) or error not in FAILURES:
                self.file.report(line, f"there is no error {error!r}", did_you_mean(str(error), FAILURES))

    def _publish(self, step: CaseStep, how: str) -> None:
        for subject, _, line in self.mapping(step, how):
            with self.told(line):
                self.names.source(subject)

    def _decide(self, step: CaseStep, how: str) -> None:
        for node, decision, line in self.mapping(step, how):
            with self.told(line):
                self.names.approve(node)
            if decision not in DECISIONS:
                self.file.report(line, f"{node} cannot be decided as {decision!r}", did_you_mean(str(decision), DECISIONS))

    def _advance(self, step: CaseStep, how: str) -> None:
        self.duration(step.about, step.line)

    def _crash(self, step: CaseStep, how: str) -> None:
        if step.about is not None and step.about not in CRASHES:
            self.file.report(step.line, f"crash cannot be {step.about!r}", did_you_mean(str(step.about), CRASHES))

    def _expect(self, step: CaseStep, how: str) -> None:
        for key, value, line in self.mapping(step, how):
            if key == "calls":
                self.calls(value, line)
            elif key == "state":
                self.states(value, line)
            elif key not in LOOKS:
                with self.told(line):
                    self.names.stored(key)
            if key not in ("calls", "state") and not countable(value):
                self.file.report(line, f"{key} is a list of what it should have, and this is {value!r}", how)

    def calls(self, value: Any, line: int) -> None:
        for node, wanted in self.of_nodes("calls", value, line, "calls: { NODE: 1 }"):
            with self.told(value.at(node)):
                self.names.call(node)
            if not countable(wanted):
                fix = f"calls: {{ {node}: 1 }}"
                self.file.report(value.at(node), f"calls of {node} are a number or a list, and this is {wanted!r}", fix)

    def of_nodes(self, what: str, value: object, line: int, how: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, Mapped):
            self.file.report(line, f"{what} is a mapping of nodes, and this is {value!r}", how)
            return
        yield from value.items()

    def states(self, value: Any, line: int) -> None:
        how = "state: { NODE: { KEY: VALUE } }"
        for node, keys in self.of_nodes("state", value, line, how):
            with self.told(value.at(node)):
                self.names.state(node)
            if not isinstance(keys, Mapped):
                self.file.report(value.at(node), f"state of {node} is a mapping of keys, and this is {keys!r}", how)


def _no_step(step: object, line: int, verbs: Sequence[str]) -> tuple[int, str, str]:
    """Line, problem and fix of what is no step."""
    if not isinstance(step, Mapped) or not step:
        return line, f"a step is a mapping, and this is {step!r}", f"one of: {', '.join(STEPS)}"
    if verbs:
        return step.line, f"a step does one thing, and this one {len(verbs)}: {', '.join(verbs)}", "- in a step of its own"
    first = next(iter(step))
    return step.at(first), f"there is no step {first!r}", did_you_mean(first, STEPS)
