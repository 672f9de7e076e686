"""Windows as they are written: in Python and in YAML, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dspex import Record, Stream, Topology, gather
from dspex.errors import TopologyError
from dspex.operators.formats.schema import yaml_schema

HERE = "test_declared"


def both(a: Record, b: Record) -> Record:
    return a | b


def fold(state: list[int], data: Any) -> list[int]:
    return [*state, data]


def topology() -> Topology:
    t = Topology("t")
    s = t.source("in").key_by("k")
    s.window("1m", every="10s", lateness=5, late="skip").count(name="sliding").sink("a")
    s.window(60).collect(name="all", limit=7).sink("b")
    s.session_window("30s").reduce(both, name="session").sink("c")
    s.window("1h").aggregate(list, fold, name="folded").sink("d")
    s.aggregate(list, fold, name="running", ttl="1h").sink("e")
    s.reduce(both, name="last").sink("f")
    return t


TEXT = f"""
dspex: 1
topology: t
sources: {{ in: {{}} }}
nodes:
  by_k:    {{ from: in, key_by: k }}
  sliding: {{ from: by_k, window: 1m, every: 10s, count: {{}}, late: skip, lateness: 5s }}
  all:     {{ from: by_k, window: 1m, collect: {{}}, limit: 7 }}
  session: {{ from: by_k, session_window: 30s, reduce: "{HERE}:both" }}
  folded:  {{ from: by_k, window: 1h, aggregate: "builtins:list", fold: "{HERE}:fold" }}
  running: {{ from: by_k, aggregate: "builtins:list", fold: "{HERE}:fold", ttl: 1h }}
  last:    {{ from: by_k, reduce: "{HERE}:both" }}
sinks:
  a: {{ from: sliding }}
  b: {{ from: all }}
  c: {{ from: session }}
  d: {{ from: folded }}
  e: {{ from: running }}
  f: {{ from: last }}
"""


def test_yaml_and_python_give_the_same_graph_and_editors_are_told_so(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    for text in (TEXT.replace(HERE, __name__), topology().to_yaml()):
        file.write_text(text)
        loaded = Topology.load(str(file))
        assert loaded.check() == []
        assert loaded.digest == topology().digest
        jsonschema.validate(yaml.safe_load(text), yaml_schema())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("window: 1m", "window says nothing about what it gives"),
        ("window: 1m, count: {}, collect: {}", "window has count, collect"),
        ("window: 1m, session_window: 1m, count: {}", "2 operators"),
        ("window: 0, count: {}", "window"),
        ("window: 1m, every: 2m, count: {}", "leave out what comes between"),
        ("window: 1m, count: {}, limit: 5", "limit= is how many events collect keeps"),
        ('window: 1m, aggregate: "builtins:list"', "aggregate takes two functions"),
        ('window: 24h, every: 1m, aggregate: "builtins:list", fold: "test_declared:fold"', "1,440 windows at once"),
        ("window: 24h, every: 7s, count: {}", "86,400 parts"),
        ("window: 0.0005, count: {}", "window"),
        ("window: 1m, late: drop, count: {}", "late"),
        ('aggregate: "builtins:list"', "needs the key 'fold'"),
    ],
)
def test_windows_that_make_no_sense_are_refused_with_their_line(tmp_path: Path, node: str, message: str) -> None:  # E18
    file = tmp_path / "t.yaml"
    head, tail = TEXT.replace(HERE, __name__).split("  sliding:")
    node = node.replace(HERE, __name__)
    file.write_text(f"{head}  wrong: {{ from: by_k, {node} }}\n  sliding:{tail}\n  g: {{ from: wrong }}\n")
    found = [p for p in Topology.load(str(file)).check() if p.level == "error"]
    assert found
    assert all(p.line == 7 and p.code in ("DX204", "DX205") and p.fix for p in found)
    assert any(message in p.message for p in found), found


def test_a_window_that_gives_nothing_is_a_problem_at_its_place() -> None:
    t = Topology("t")
    keyed = t.source("in").key_by("k")
    keyed.sink("out")
    keyed.window("1m")
    (problem,) = t.check()
    assert (problem.code, problem.message) == ("DX204", "a window by itself gives nothing")
    assert str(problem.file).endswith("test_declared.py")
    assert problem.line


def test_a_window_without_a_key_and_an_option_that_is_misspelt_are_problems() -> None:
    t = Topology("t")
    s: Stream[Any, Any] = t.source("in")
    s.window("1m", latenes="5s").count(name="w").sink("out")  # type: ignore[call-arg]
    assert {p.code for p in t.check()} == {"DX203", "DX204"}


def test_one_window_may_give_several_things() -> None:
    t = Topology("t")
    window = t.source("in").key_by("k").window("1m")
    window.count(name="a").sink("x")
    window.collect(name="b").sink("y")
    assert t.check() == []


@pytest.mark.parametrize(
    "node",
    [
        "approve: {timeout: 1h}",
        "window: 1m, collect: {limit: 5}",
        "merge: [k]",
        "gather: {within: 5s}, within: 1s",
        "approve: wait",
    ],
)
def test_an_option_within_what_takes_nothing_is_refused(node: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    head = "dspex: 1\ntopology: t\nsources: {in: {}}\nnodes:\n  k: {from: in, key_by: k}\n"
    path.write_text(f"{head}  w: {{from: {'[k, in]' if node[0] in 'mg' else 'k'}, {node}}}\nsinks:\n  out: {{from: w}}\n")
    found = [p for p in Topology.load(path).check() if p.code == "DX205"]
    assert ["options stand beside it" in p.fix for p in found] == [True]


def test_what_happens_after_a_time_that_is_not_said_is_refused() -> None:
    t = Topology("t")
    t.source("in").approve(name="ok", on_timeout="drop").sink("out")
    (problem,) = t.check()
    assert (problem.code, "timeout=" in problem.message) == ("DX205", True)


def test_gather_of_nothing_says_so() -> None:
    with pytest.raises(TopologyError, match="gather joins streams, and was given none"):
        gather(name="g", within="1s")
