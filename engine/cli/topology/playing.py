"""Runs a case of a test file on the testing driver, and says what differs from what it expects."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from dspex.bus.errors import DspexError, RunError
from dspex.engine.cli.terminal.terminal import to_json
from dspex.engine.cli.topology.cases import CaseStep, TestCase
from dspex.engine.cli.topology.steps import FAILURES
from dspex.engine.client.status.approvals import Approval
from dspex.engine.graph.graph import Graph
from dspex.engine.testing.driver import Driver

_SHOWN = 300  # characters of a value in a message
Path = tuple[str, ...]  # of a value in an `expect`: its keys


@dataclass(frozen=True)
class Unmet:
    """Why a case failed. `fix`: what to do, where that is known."""

    line: int
    message: str
    fix: str = ""


@dataclass(frozen=True)
class Renewal:
    """An expectation that did not hold, and what it would have to be: of a step by its number, the value at `path`."""

    case: str
    number: int
    path: Path
    value: Any


@dataclass
class Outcome:
    """What became of a case. `failures`: one, unless everything that it expects was looked at for --update."""

    case: TestCase
    failures: list[Unmet] = field(default_factory=list[Unmet])
    renewals: list[Renewal] = field(default_factory=list[Renewal])
    seconds: float = 0.0


@dataclass(frozen=True)
class Graphed:
    """A graph, as the driver takes a topology."""

    graph: Graph


def play(case: TestCase, graphs: Sequence[Graph], *, update: bool = False, **driver: Any) -> Outcome:
    """Run a case. `update`: go on behind what does not hold, and say how it would. `driver`: options of Driver."""
    outcome, began = Outcome(case), time.monotonic()
    line = case.line
    try:
        with Driver(*map(Graphed, graphs), **driver) as d:
            for step in case.steps:
                line = step.line
                _take(d, step, outcome)
                if outcome.failures and not update:
                    d.dead_letters()  # they would only follow from the failure that is told
                    break
            line = case.line
    except AssertionError as e:
        message, _, fix = str(e).strip().partition("\nfix: ")  # of what gives something else when it is processed again
        outcome.failures.append(Unmet(line, message, fix or "expect: { dead_letters: [ { reason: ... } ] }"))
    except DspexError as e:
        outcome.failures.append(Unmet(line, e.message, e.fix))
    outcome.seconds = time.monotonic() - began
    return outcome


def _take(d: Driver, step: CaseStep, outcome: Outcome) -> None:
    about, options = step.about, step.options
    match step.verb:
        case "answer":
            for node, outputs in about.items():
                d.answer(node, outputs, **options)
        case "fail":
            for node, error in about.items():
                d.fail(node, FAILURES[error](options.get("message", error)), times=options.get("times", 1))
        case "publish":
            for subject, data in about.items():
                d.publish(subject, data, **options)
        case "decide":
            for node, decision in about.items():
                d.decide(_oldest(d, node), decision, **options)
        case "advance":
            d.advance(about)
        case "crash":
            d.crash(about or "engine")
        case _:
            _expect(d, step, outcome)


def _oldest(d: Driver, node: str) -> Approval:
    """What waits longest for a decision at a node. Raises RunError (DX626) where nothing does."""
    found = next((one for one in d.approvals() if one.node == node), None)
    if found is None:
        raise RunError(f"nothing waits for a decision at {node}", code="DX626", fix="publish before it what is to wait there")
    return found


def _expect(d: Driver, step: CaseStep, outcome: Outcome) -> None:
    for path, expected, found in _looks(d, step.about):
        where = next((f for f in differences(expected, found, ".".join(path))), None)
        if where is not None:
            line = _at(step.about, path[:-1]).at(path[-1])
            outcome.failures.append(Unmet(line, where))
            value = len(found) if counted(expected, found) else renewed(expected, found)
            outcome.renewals.append(Renewal(outcome.case.name, step.number, path, value))


def _at(about: Any, path: Path) -> Any:
    for key in path:
        about = about[key]
    return about


def _looks(d: Driver, about: Mapping[str, Any]) -> Iterator[tuple[Path, Any, Any]]:
    """Each thing that is expected: where it stands, what it is, and what there is."""
    for key, expected in about.items():
        if key == "calls":
            for node, wanted in expected.items():
                yield (key, node), wanted, [asdict(step) for step in d.calls(node)]
        elif key == "state":
            for node, keys in expected.items():
                for of, wanted in keys.items():
                    yield (key, node, of), wanted, d.state(node, of)
        elif key == "approvals":
            yield (key,), expected, [one.as_dict() for one in d.approvals()]
        elif key == "dead_letters":
            yield (key,), expected, [letter.as_dict() for letter in d.dead_letters()]
        else:
            yield (key,), expected, d.outputs(key)


# -- what differs ------------------------------------------------------------------------------------------------------
def differences(expected: Any, found: Any, where: str) -> Iterator[str]:
    """Where `found` has not what is expected. A mapping may have more; a list may not. A number stands for a list so long."""
    if counted(expected, found):
        if len(found) != expected:
            yield f"{where}: {expected} expected, and there are {len(found)}: {_shown(found)}"
    elif isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key, value in expected.items():
            if key in found:
                yield from differences(value, found[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}: {_shown(value)} expected, and there is no {key}: {_shown(found)}"
    elif isinstance(expected, list) and isinstance(found, list):
        wanted = cast("Sequence[object]", expected)
        if len(wanted) != len(found):
            yield f"{where}: {len(wanted)} expected, and there are {len(found)}: {_shown(found)}"
            return
        for i, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from differences(one, other, f"{where}[{i}]")
    elif expected != found or isinstance(expected, bool) != isinstance(found, bool):
        yield f"{where}: {_shown(expected)} expected, got {_shown(found)}"


def counted(expected: Any, found: Any) -> bool:
    """Whether a number stands for a list."""
    return isinstance(found, list) and isinstance(expected, int) and not isinstance(expected, bool)


def _shown(value: Any) -> str:
    text = to_json(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def renewed(expected: Any, found: Any) -> Any:
    """What is there, in the shape of what was expected: of a mapping only the keys that were named."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return {k: renewed(v, found[k]) for k, v in expected.items() if k in found}
    if isinstance(expected, list) and isinstance(found, list):
        wanted: list[Any] = [*expected, *([None] * max(0, len(found) - len(expected)))]
        return [renewed(e, f) for e, f in zip(wanted, found, strict=False)]
    return found
