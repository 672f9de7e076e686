"""Write docs/operators.md from the declarations of the operators and the docstrings of the methods of `Stream`.

    python docs/make/operators.py

A test holds the page to the declarations.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

from dspex.bus.settings import not_built as planned
from dspex.operators.operator import Operator
from dspex.operators.parameters import ChoiceParameter
from dspex.operators.parameters.parameter import REQUIRED, Parameter
from dspex.operators.recorded import options as call_options
from dspex.operators.registry import AnyOperator, operators
from dspex.operators.stateless import sink, source
from dspex.operators.stream import Stream

PAGE = Path(__file__).parents[1] / "operators.md"

HEAD = """# Operators

This page is made from the declarations in `operators/stateless` and `operators/recorded` by `docs/make/operators.py`: change it
there. [Topologies](topologies.md) explains how they work together.

An option has the same name in Python, `stream.score("f1", expected="gold", actual="answer")`, and in YAML,
`{ from: answers, score: f1, expected: gold, actual: answer }`. Every operator also takes `name=`; in YAML that is the key of
the node. A type or a function is written as a ref in YAML, `"pkg.module:name"`. What is left out has its default, and an option
that is not built is refused."""


def table(parameters: Mapping[str, Parameter]) -> str:
    """The options of something, one a row."""
    rows = [f"| `{name}` | {p.kind} | {default(p)} | {p.doc} |" for name, p in parameters.items()]
    return "\n".join(["| option | value | default | |", "|---|---|---|---|", *rows])


def default(parameter: Parameter) -> str:
    """A default as Python writes it."""
    if parameter.default is REQUIRED:
        return "required"
    if parameter.default is None:
        return "–"
    return f'`"{parameter.default}"`' if isinstance(parameter.default, str) else f"`{parameter.default}`"


def section(operator: AnyOperator) -> str:
    """One operator: what it does, its main argument, its own options."""
    about = inspect.getdoc(getattr(Stream, operator.name)) or ""
    parts = [f"### {operator.name}", about.partition("\n\n")[0]]
    takes = "the other streams; in YAML `from` is a list of all" if operator.many_inputs else operator.main.kind
    parts.append(f"Takes {takes}.")
    shared = () if isinstance(operator, Operator) else (*call_options.CALL_OPTIONS, "into")
    own = {name: p for name, p in operator.options.items() if name not in shared}
    if own:
        parts.append(table(own))
    if operator.one_of:
        parts.append(f"Exactly one of {', '.join(f'`{name}`' for name in operator.one_of)} says what it gives.")
    if without := [f"`{name}`" for name in shared if name not in operator.options]:
        parts.append(f"It asks no model, so it has no {', '.join(without[:-1])} and {without[-1]}.")
    return "\n\n".join(parts)


def words_not_built(name: str, parameter: Parameter) -> list[str]:
    """The values of a choice that are not built."""
    return [f'{name}="{word}"' for word in parameter.not_built] if isinstance(parameter, ChoiceParameter) else []


def not_built() -> str:
    """Names that other pages of the project speak of, and that do nothing yet."""
    words = [word for name, p in call_options.CALL_OPTIONS.items() for word in words_not_built(name, p)]
    shown = {"call": "calls", "source": "sources", "sink": "sinks"}
    options = [(shown.get(of, f"`{of}`"), (*names, *(words if of == "call" else ()))) for of, names in planned.OPTIONS.items()]
    found = [("operators", planned.OPERATORS), *options]
    return "\n".join(f"* {what}: {', '.join(f'`{name}`' for name in names)}" for what, names in found if names)


def page() -> str:
    """The whole page."""
    native = [section(o) for o in operators().values() if isinstance(o, Operator)]
    recorded = [section(o) for o in operators().values() if not isinstance(o, Operator)]
    calls = {"into": operators()["predict"].options["into"], **call_options.CALL_OPTIONS}
    parts = [
        HEAD,
        "## Native operators",
        *native,
        "## Recorded operators",
        "They need a `name`: calls, records and dead letters are kept under it. Each takes the options of calls too; in YAML\n"
        "`instructions` gives the signature its instructions.",
        *recorded,
        "## Options of calls",
        table(calls),
        "## Options of sources",
        table(source.SOURCE_OPTIONS),
        "## Options of sinks",
        table(sink.SINK_OPTIONS),
        "## Not built yet",
        "These are planned. Until they are built they are refused (`DX237`; a method in Python raises `AttributeError`).\n"
        "Options are listed by what would take them:",
        not_built(),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
