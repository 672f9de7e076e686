"""`through`: parts of topologies as functions and as files, with calls and keys of their own, one within another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

PARTS = """
def asked(s):
    return s.key_by("customer").predict("text -> answer", name="ask", order="key")

def checked(s):
    yes, no = s.through(asked, name="inner").branch("answer == 'yes'")
    no.sink("kyc.refused")
    return yes

def ends(s): s.sink("part.out")
def number(s): return 5
def listed(s): return [s]
def pair(s): return s, s.filter("has(text)")
constant = 3
"""
KYC = """
dspex: 1
nodes:
  inner: { from: input, through: "%s" }
  branch: { from: inner, branch: ["answer == 'yes'"] }
sinks: { kyc.refused: { from: branch.rest } }
output: branch.0
"""
ASKED = """
dspex: 1
nodes:
  by_customer: { from: input, key_by: customer }
  ask: { from: by_customer, predict: "text -> answer", order: key }
output: ask
"""
MAIN = """
dspex: 1
topology: mail
sources: { in: {} }
nodes:
  kyc: { from: in, through: "%s" }
  only: { from: kyc, set: { seen: "True" } }
sinks: { out: { from: only } }
"""


@pytest.fixture
def parts(module: Callable[[str, str], ModuleType], tmp_path: Path) -> ModuleType:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/kyc.yaml").write_text(KYC % "deeper/asked.yml")
    (tmp_path / "parts/deeper").mkdir()
    (tmp_path / "parts/deeper/asked.yml").write_text(ASKED)
    return module("parts_of_mail", PARTS)


def mail(parts: ModuleType) -> Topology:
    topology = Topology("mail")
    topology.source("in").through(parts.checked, name="kyc").set({"seen": "True"}, name="only").sink("out")
    return topology


def loaded(tmp_path: Path, text: str) -> Topology:
    (tmp_path / "mail.yaml").write_text(text)
    return Topology.load(tmp_path / "mail.yaml")


def problems(topology: Topology) -> list[tuple[str, str, str, str]]:
    return [(p.code, p.level, p.node or "", f"{p.message} | {p.fix}") for p in topology.check()]


def test_a_part_is_the_same_as_a_function_as_a_file_and_written_out(parts: ModuleType, tmp_path: Path) -> None:
    topology = mail(parts)
    names = [name for name, n in topology.graph.nodes.items() if n.role not in ("source", "sink")]
    assert names == ["kyc/inner/by_customer", "kyc/inner/ask", "kyc/branch", "only"]
    for text in (MAIN % "parts_of_mail:checked", MAIN % "parts/kyc.yaml", topology.to_yaml()):
        assert loaded(tmp_path, text).digest == topology.digest
    (tmp_path / "parts/kyc.yaml").write_text(KYC % "parts_of_mail:asked")
    assert loaded(tmp_path, MAIN % "parts/kyc.yaml").digest == topology.digest


def test_calls_keys_letters_and_redrives_of_a_part_go_by_its_name(parts: ModuleType) -> None:
    with Driver(mail(parts)) as d:
        d.answer("kyc/inner/ask", lambda inputs: {"answer": inputs["text"]})
        d.publish("in", {"customer": "ada", "text": "yes"})
        d.publish("in", {"customer": "bob", "text": "no"})
        d.fail("kyc/inner/ask", ValueError("a bug"))
        d.publish("in", {"customer": "eve", "text": "yes"})
        assert [(letter.node, letter.event.key) for letter in d.dead_letters()] == [("kyc/inner/ask", "eve")]
        assert [e.key for e in d.events("out")] == ["ada"]
        d.crash("all")
        assert d.redrive() == 1
        assert [e.key for e in d.events("out")] == ["ada", "eve"]
        assert [o["customer"] for o in d.outputs("kyc.refused")] == ["bob"]
        assert [c.node for c in d.calls("kyc/inner/ask")] == ["kyc/inner/ask"] * 4


def test_a_part_that_is_used_twice_has_two_names_and_one_name_for_both_is_a_problem(parts: ModuleType) -> None:
    topology = Topology("twice")
    source = topology.source("in")
    for name in ("left", "right"):
        source.through(parts.asked, name=name).sink(name)
    assert problems(topology) == []
    again = Topology("again")
    source = again.source("in")
    for sink in ("one", "two"):
        source.through(lambda s: s.filter("has(text)"), name="part").sink(sink)
        source.through(parts.asked, name="asked").sink(f"asked.{sink}")
    found = problems(again)
    assert [(code, level, node) for code, level, node, _ in found] == [
        ("DX201", "error", "asked/ask"),
        ("DX320", "warning", "part/filter_2"),
        ("DX320", "warning", "asked/by_customer_2"),
    ]


@pytest.mark.parametrize("name", ["Kyc", "a/b", "", "x" * 49, 5])
def test_a_wrong_name_of_a_part_is_one_problem(parts: ModuleType, name: Any) -> None:
    topology = Topology("wrong")
    topology.source("in").through(parts.asked, name=name).sink("out")
    assert [(code, said.split(" | ")[0]) for code, _, _, said in problems(topology)] == [
        ("DX202", f"{name!r} is not a name for a part")
    ]


@pytest.mark.parametrize(
    ("part", "code", "said"),
    [
        ("parts_of_mail:number", "DX219", "gives int | return a stream"),
        ("parts_of_mail:listed", "DX219", "gives list | return a stream"),
        ("parts_of_mail:constant", "DX219", "a part is a function of a stream, and parts_of_mail:constant is of type int"),
        ("parts_of_mail:absent", "DX221", "has no 'absent'"),
        ("parts/absent.yaml", "DX221", "cannot be read"),
        ("parts_of_mail:ends", "DX206", "node only: no data comes out of kyc | it ends in sinks"),
        ("parts_of_mail:pair", "DX206", "node only: kyc is no outlet | one of: kyc.0, kyc.1, kyc.rest"),
    ],
)
def test_what_is_no_part_is_refused_with_what_to_do(parts: ModuleType, tmp_path: Path, part: str, code: str, said: str) -> None:
    (found, *_) = [p for p in problems(loaded(tmp_path, MAIN % part)) if p[1] == "error"]
    assert found[0] == code
    assert said in found[3]
