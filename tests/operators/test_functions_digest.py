"""What functions do is part of the build: replay tells with it that other code runs than when a log was written."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from dspex.operators.topology import Topology

BASE = """
def helper(n, by=1):
    return n + by

def make(step):
    return lambda d: {"n": helper(d["n"]) * step if d["kind"] in {"a", "b", "c"} else 0}

f = make(2)
"""


def functions(text: str, *, fallback: bool = False) -> str:
    """The digest for a topology with the function `f` of a module."""
    space: dict[str, Any] = {"__name__": "pipeline"}
    exec(text, space)
    topology = Topology("t")
    source = topology.source("in")
    if fallback:
        source.predict("text -> answer", name="ask", fallback=space["f"]).sink("out")
    else:
        source.map(space["f"], name="m").sink("out")
    return topology.graph.functions


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [("n + by", "n - by"), ("by=1", "by=2"), ("make(2)", "make(3)"), ('"c"', '"x"'), ("d[", "d.get(")],
    ids=["helper", "default", "closure", "constant", "body"],
)
def test_other_code_of_a_function_is_another_digest(old: str, new: str, fallback: bool) -> None:
    changed = BASE.replace(old, new).replace('get("n"]', 'get("n")').replace('get("kind"]', 'get("kind")')
    assert functions(changed, fallback=fallback) != functions(BASE, fallback=fallback)


def test_comments_and_places_are_no_other_code() -> None:
    assert functions("# a comment\n\n\n" + BASE) == functions(BASE)


def test_a_topology_without_functions_has_the_digest_of_nothing() -> None:
    found = set[str]()
    for test in ("n > 1", "n > 2"):
        topology = Topology("t")
        topology.source("in").filter(test).sink("out")
        found.add(topology.graph.functions)
    assert len(found) == 1


def test_the_digest_is_the_same_in_every_process_whatever_its_hash_seed() -> None:
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}; from test_functions_digest import BASE, functions; print(functions(BASE))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=os.path.dirname(__file__),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {functions(BASE)}
