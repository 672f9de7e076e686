"""The page that the public names were designed on, and the code: what the page names is there, or said to be not built.

The page lies beside the project, in ../shared, and is no part of it: where it is not there, these tests are skipped.
"""

from __future__ import annotations

import ast
import dis
import importlib
import inspect
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dspex
from dspex.bus.settings import not_built

ROOT = Path(__file__).parents[2]
PAGE = ROOT.parent / "shared" / "API.md"
needs_page = pytest.mark.skipif(not PAGE.exists(), reason="../shared/API.md is not there")
HOMES = {  # of what is no name of dspex itself
    "ModuleConfig": "dspex.operators.recorded.options",
    "CallOptions": "dspex.operators.recorded.options",
    "WindowOptions": "dspex.operators.keyed.windows.stream",
    "SourceOptions": "dspex.operators.stateless.source",
    "Answer": "dspex.engine.client.calls.stream",
    "Accepted": "dspex.engine.client.calls.events",
    "Progress": "dspex.engine.client.calls.events",
    "DeadLetter": "dspex.engine.client.letters",
    "Turn": "dspex.engine.client.status.sessions",
    "Step": "dspex.engine.client.runs.steps",
    "RunInfo": "dspex.engine.client.following.progress",
    "StepDiff": "dspex.engine.client.runs.diff",
    "Diff": "dspex.engine.client.runs.diff",
    "Replay": "dspex.engine.client.runs.diff",
    "Usage": "dspex.bus.records",
    "register_codec": "dspex.codecs",
    "Driver": "dspex.testing",
    "Faults": "dspex.testing",
    "CallContext": "dspex.workers.answerers.context",
    "tool": "dspex.workers",
    "app": "dspex.asgi",
}
# Plain records and option tables of what is not built: they come with the methods that give or take them.
COMES_WITH: dict[str, str] = {}
# Whose parameters have other names for a reason: an overload of the page, and what the class is made of.
OTHERWISE = {"Stream.branch", "Stream.render", "Signature"}
PLANNED = {*not_built.NAMES, *not_built.OPERATORS}


def stubs() -> Iterator[ast.stmt]:
    for block in re.findall(r"```python\n# stub\n(.*?)```", PAGE.read_text() if PAGE.exists() else "", re.DOTALL):
        yield from ast.parse(block).body


def named() -> dict[str, set[str]]:
    """The classes and functions of the page, with the members of the classes."""
    found: dict[str, set[str]] = {}
    for node in stubs():
        if isinstance(node, ast.ClassDef):
            of = found.setdefault(node.name, set())
            of |= {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
            of |= {one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.setdefault(node.name, set())
    return found


def built(name: str) -> Any:
    """The class or function; None where it is not built."""
    if name in dspex.__all__:
        return getattr(dspex, name)
    home = HOMES.get(name)
    return getattr(importlib.import_module(home), name) if home else None


def members(of: Any) -> set[str]:
    """Also the fields that are only annotated, and what `__init__` sets."""
    if not inspect.isclass(of):
        return set()
    found = {*dir(of), *(field for kind in inspect.getmro(of) for field in getattr(kind, "__annotations__", {}))}
    if inspect.isfunction(init := vars(of).get("__init__")):
        found |= {str(step.argval) for step in dis.get_instructions(init) if step.opname == "STORE_ATTR"}
    return found


@needs_page
@pytest.mark.parametrize("name", sorted(named()))
def test_what_the_page_names_is_there_or_said_to_be_not_built(name: str) -> None:
    found = built(name)
    if found is None:
        assert name in PLANNED or COMES_WITH.get(name) in PLANNED
        return
    lists = {"CallOptions": not_built.OPTIONS["call"], "SourceOptions": not_built.OPTIONS["source"]}
    planned = {"Stream": not_built.OPERATORS, **lists}.get(name, ())
    assert {member for member in named()[name] if member not in members(found)} == set(planned) & named()[name]
    assert not set(planned) & set(dir(found)), "what is listed as not built is there"


def functions() -> Iterator[tuple[str, set[str]]]:
    """The functions and methods of the page, "Client.call", each with its parameters; those of `__init__` are of the class."""
    for node in stubs():
        for one in node.body if isinstance(node, ast.ClassDef) else [node]:
            if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            a = one.args
            names = {p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)} - {"self", "cls"}
            of = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            yield f"{of}{one.name}".removesuffix(".__init__"), names


@needs_page
def test_the_parameters_of_the_page_are_there() -> None:
    lacking: dict[str, set[str]] = {}
    for name, wanted in functions():
        of, _, method = name.partition(".")
        found = getattr(built(of), method, None) if method else built(of)
        if found is not None and callable(found) and name not in OTHERWISE:
            lacking.setdefault(name, set()).update(wanted - set(inspect.signature(found).parameters))
    assert {name: names for name, names in lacking.items() if names} == {}


@needs_page
def test_the_names_to_import_are_those_of_the_page() -> None:
    (line,) = re.findall(
        r"^`dspex.__all__` \(pinned by a test\): `([^`]*)`, and the modules `([^`]*)`", PAGE.read_text(), re.MULTILINE
    )
    assert {*line[0].split(), *line[1].split()} - set(not_built.NAMES) == set(dspex.__all__)


@pytest.mark.parametrize("name", [name for name in not_built.NAMES if name != "tool"])
def test_a_name_that_is_not_built_says_so(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'{name}': it is not built in this version"):
        getattr(dspex, name)


def test_the_list_of_what_is_not_built_is_what_the_code_refuses() -> None:
    make = runpy.run_path(str(ROOT / "docs/make/not_built.py"))
    assert make["PAGE"].read_text() == make["page"](), "run: python docs/make/not_built.py"


def test_no_name_is_listed_as_not_built_that_can_be_imported() -> None:
    modules = [getattr(dspex, name) for name in dspex.__all__ if inspect.ismodule(getattr(dspex, name))]
    assert not [name for name in not_built.NAMES if any(hasattr(module, name) for module in modules)]
