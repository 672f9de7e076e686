"""docs/guides/adding-an-operator.md: the file that it shows is all that a new operator needs; it lies where such files do."""

from __future__ import annotations

import re
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from dspex import Topology
from dspex.bus.errors import Problem
from dspex.operators import stateless, stream
from dspex.operators.formats.schema import yaml_schema
from dspex.operators.native.templates.schema import Schema
from dspex.operators.registry import operators
from dspex.operators.stream import Stream

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/adding-an-operator.md").read_text()
YAML = """
dspex: 1
topology: t
sources: { a.b: {} }
nodes: { one: { from: a.b, pick: text, missing: drop } }
sinks: { c.d: { from: one } }
"""


@pytest.fixture(autouse=True)
def the_file_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (source,) = re.findall(r"^```python\n# pick\.py\n(.*?)^```$", PAGE, re.S | re.M)
    (tmp_path / "pick.py").write_text(source)
    monkeypatch.setattr(stateless, "__path__", [*stateless.__path__, str(tmp_path)])
    operators.cache_clear()
    yield tmp_path
    sys.modules.pop("dspex.operators.stateless.pick", None)
    operators.cache_clear()


@pytest.fixture
def pick() -> Callable[..., Any]:
    """The method of the page, as it stands there."""
    (block,) = re.findall(r"^```text\n(    @declared\n.*?)^```$", PAGE, re.S | re.M)
    names: dict[str, Any] = {**vars(stream), "Literal": Literal}
    exec(f"from __future__ import annotations\n{textwrap.dedent(block)}", names)
    method: Callable[..., Any] = names["pick"]
    return method


def problems(method: Callable[..., Any], *main: str, **options: Any) -> list[Problem]:
    topology = Topology("t")
    method(topology.source("a.b").set({"text": "'hi'"}), *main, **options).sink("c.d")
    return topology.check()


def test_a_new_operators_file_is_found_and_its_operator_used_in_a_topology(pick: Callable[..., Any]) -> None:
    assert "pick" in operators()
    assert problems(pick, "text") == []


def test_the_options_of_a_new_operator_are_checked_as_those_of_every_operator(pick: Callable[..., Any]) -> None:
    found = problems(pick, "", missing="drap", mising="drop")
    assert [p.code for p in found] == ["DX204", "DX205", "DX205"]
    assert found[0].fix == "did you mean missing?"


def test_yaml_and_the_schema_for_editors_know_a_new_operator(the_file_of_the_page: Path, pick: Callable[..., Any]) -> None:
    python = Topology("t")
    pick(python.source("a.b"), "text", missing="drop", name="one").sink("c.d")
    (the_file_of_the_page / "t.yaml").write_text(YAML)
    loaded = Topology.load(the_file_of_the_page / "t.yaml")
    assert loaded.check() == []
    assert loaded.digest == python.digest
    assert "pick: text" in loaded.to_yaml()
    Schema(yaml_schema()).check(yaml.safe_load(YAML))


def test_the_reference_page_lists_a_new_operator(pick: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "pick", pick, raising=False)
    assert "### pick\n\nKeep this field alone." in runpy.run_path(str(ROOT / "docs/make/operators.py"))["page"]()
