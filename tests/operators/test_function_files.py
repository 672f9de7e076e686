"""The files in which functions lie, and those that they import, are a part of a build; those of others are not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import TypeAlias

import pytest

from dspex.engine.log.build import FILES, MOST_FILES, build, differing, names_no_files
from dspex.operators.recorded.calls import program
from dspex.operators.topology import Topology

FILES_OF_ALL: Mapping[str, str] = {
    "flow13/__init__.py": "",
    "flow13/main.py": """
import json
import orjson
from dspex import Topology
from flow13 import text
from .deep import *

def size(data):
    import lazy13
    return {"n": text.length(data) + lazy13.MORE}

topology = Topology("sizes13")
topology.source("in").map(size).sink("out")
""",
    "flow13/text.py": "from .shared.words import length\n",
    "flow13/shared/__init__.py": "",
    "flow13/shared/words.py": "def length(data):\n    return len(data) + 1\n",
    "flow13/deep.py": "import flow13.main\n",
    "flow13/unused.py": "",
    "lazy13.py": "MORE = 3\n",
}
MakeFiles: TypeAlias = Callable[[Mapping[str, str]], Mapping[str, str]]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeFiles]:
    """Writes files, imports the topology anew, and gives its build."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("flow13", "lazy13")]:
            del sys.modules[name]

    def make(changed: Mapping[str, str]) -> Mapping[str, str]:
        for name, text in {**FILES_OF_ALL, **changed}.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists() or file.read_text() != text:
                file.unlink(missing_ok=True)
                file.write_text(text)
        forget()
        invalidate_caches()
        topology: Topology = import_module("flow13.main").topology
        return build(topology.graph)

    yield make
    forget()


def test_a_build_names_the_files_that_functions_reach_by_imports_and_no_others(built: MakeFiles) -> None:
    found = [name for name in built({}) if name.endswith(".py")]
    assert found == sorted(set(FILES_OF_ALL) - {"flow13/unused.py"})


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("flow13/shared/words.py", "def length(data):\n    return len(data) + 2\n"),
        ("flow13/shared/__init__.py", "MORE = 1\n"),
        ("lazy13.py", "MORE = 33\n"),
        ("flow13/main.py", FILES_OF_ALL["flow13/main.py"] + "\nOTHER = 1\n"),
    ],
)
def test_a_change_in_a_file_that_functions_reach_is_another_build_which_names_it(
    built: MakeFiles, file: str, text: str
) -> None:
    then = built({})
    now = built({file: text})
    assert list(differing(then, now)) == [file]
    assert differing(then, built({})) == {}


def test_comments_and_lines_are_no_change_of_a_file(built: MakeFiles) -> None:
    then = built({})
    now = built({"lazy13.py": "# how much\n\n\nMORE  =  (3)\n", "flow13/unused.py": "MORE = 1\n"})
    assert differing(then, now) == {}


def test_a_file_that_is_new_or_gone_is_named_and_one_that_python_cannot_read_is_its_bytes(built: MakeFiles) -> None:
    then = built({})
    more = {"flow13/deep.py": "import flow13.more\n", "flow13/more.py": ""}
    now = built(more)
    assert list(differing(then, now)) == ["flow13/deep.py", "flow13/more.py"]
    assert differing(now, then)["flow13/more.py"] == (now["flow13/more.py"], "")
    never = "def never():\n    import {}\n"
    broken = built({"flow13/text.py": FILES_OF_ALL["flow13/text.py"] + never.format("flow13.no"), "flow13/no.py": "1 +\n"})
    other = built({"flow13/text.py": FILES_OF_ALL["flow13/text.py"] + never.format("flow13.no"), "flow13/no.py": "2 +\n"})
    assert list(differing(broken, other)) == ["flow13/no.py"]


def test_a_build_names_so_many_files_at_most_and_a_change_of_any_other_is_seen(built: MakeFiles) -> None:
    names = [f"z{n:03}" for n in range(MOST_FILES)]
    many = {f"flow13/{name}.py": f"N = {n}\n" for n, name in enumerate(names)}
    many["flow13/deep.py"] = f"from . import {', '.join(names)}\n"
    then = built(many)
    assert sum(name.endswith(".py") for name in then) == MOST_FILES
    now = built({**many, f"flow13/{names[-1]}.py": "N = -1\n"})
    assert list(differing(then, now)) == [FILES]
    assert not names_no_files(differing(then, now))


def test_a_build_of_before_names_no_files_and_that_is_no_difference(built: MakeFiles) -> None:
    now = built({})
    then = {name: value for name, value in now.items() if name != FILES and not name.endswith(".py")}
    found = differing(then, now)
    assert (list(found), names_no_files(found)) == ([FILES], True)
    assert differing({}, now) == {}


def test_types_fallbacks_and_lists_of_functions_lead_to_files_and_refs_of_programs_do_not(built: MakeFiles) -> None:
    code = "from dataclasses import dataclass\n@dataclass\nclass Said:\n    n: int\ndef test(data):\n    return True\n"
    built({"flow13/deep.py": code})
    deep = import_module("flow13.deep")
    typed, tests, falls, asks = (Topology(f"kind{n}") for n in range(4))
    typed.source("in", type=deep.Said).sink("out")
    for n, stream in enumerate(tests.source("in").branch("n > 1", deep.test)):
        stream.sink(f"out.{n}")
    falls.source("in").predict("text -> answer", name="ask", fallback=deep.test).sink("out")
    asks.source("in").call(program("flow13.deep:Said", "text -> answer"), name="ask").sink("out")
    found = [[name for name in build(one.graph) if name.endswith(".py")] for one in (typed, tests, falls, asks)]
    assert found == [["flow13/__init__.py", "flow13/deep.py"]] * 3 + [[]]
