"""What happens is said by names that are listed, and a listener that fails stops nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog
from structlog.testing import capture_logs

from dspex.bus import telemetry
from dspex.bus.errors import ProgramError
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.seldom import Seldom
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

ROOT = Path(__file__).parents[2]


def said_in_source() -> Iterator[tuple[str, set[str]]]:
    """Names and facts of all calls of `emit` that spell them out."""
    for room in ("bus", "engine", "workers"):
        for path in (ROOT / room).rglob("*.py"):
            if "telemetry.emit(" not in (text := path.read_text()):
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "telemetry.emit":
                    facts = {k.arg for k in node.keywords if k.arg}
                    if isinstance(node.args[0], ast.Constant):
                        yield node.args[0].value, facts


def test_every_fact_that_is_said_is_listed_and_every_name_that_is_listed_is_said() -> None:
    facts = {name: set(text.partition(":")[0].split()) for name, text in telemetry.HAPPENINGS.items()}
    said = dict.fromkeys(facts, False) | {name: True for name, _ in said_in_source()}
    notes = {"record", "retry", "fallback", "put_off", "dropped", "gone", "dead_letter"}  # see arrival.py, Note
    assert {name for name, found in said.items() if not found} == notes
    assert {(name, fact) for name, found in said_in_source() for fact in found if fact not in facts[name]} == set()


def test_a_listener_hears_commits_records_and_dead_letters_until_it_leaves() -> None:
    heard: list[tuple[str, Mapping[str, object]]] = []
    leave = telemetry.subscribe(lambda name, facts: heard.append((name, facts)))
    topology = Topology("heard")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"})
        d.publish("in", {"text": "a"})
        d.fail("ask", ProgramError("no"))
        d.publish("in", {"text": "b"})
        d.advance("1s")
        assert [letter.node for letter in d.dead_letters()] == ["ask"]
        leave()
        before = len(heard)
        d.publish("in", {"text": "c"})
        assert len(heard) == before
    names = [name for name, _ in heard]
    assert names.count("record") == 2
    assert sum(int(str(facts["arrivals"])) for name, facts in heard if name == "commit") >= 4
    (letter,) = [facts for name, facts in heard if name == "dead_letter"]
    assert (letter["topology"], letter["node"], letter["error"]) == ("heard", "ask", "ProgramError")
    for name, facts in heard:
        assert set(facts) <= set(telemetry.HAPPENINGS[name].partition(":")[0].split())


def test_a_listener_that_fails_stops_neither_what_it_watches_nor_other_listeners() -> None:
    heard: list[str] = []

    def fails(name: str, facts: Mapping[str, object]) -> None:
        raise ArithmeticError("a bug")

    leave = [telemetry.subscribe(fails), telemetry.subscribe(lambda name, facts: heard.append(name))]
    with capture_logs() as logs:
        telemetry.emit("room")
    for each in leave:
        each()
    assert heard == ["room"]
    assert [entry["happening"] for entry in logs] == ["room"]


def test_who_asks_for_one_happening_hears_no_other_and_nobody_else_need_be_told() -> None:
    heard: list[str] = []
    leave = telemetry.subscribe(lambda name, facts: heard.append(name), ("commit",))
    topology = Topology("narrow")
    topology.source("in").predict("text -> answer", name="ask").sink("out")
    with Driver(topology) as d:
        d.answer("ask", {"answer": "yes"})
        d.publish("in", {"text": "a"})
        d.advance("1s")
        assert not telemetry.is_heard("handled")
        also = telemetry.subscribe(lambda name, facts: None)
        assert telemetry.is_heard("handled")
        also()
        assert not telemetry.is_heard("handled")
        assert telemetry.is_heard("commit")
    leave()
    assert not telemetry.is_heard("commit")
    assert set(heard) == {"commit"}


# -- what fails again and again --------------------------------------------------------------------------------------------
async def say_more(said: Seldom) -> None:
    said.error("away", why="refused")
    said.error("gone")


def test_a_line_is_logged_again_after_a_minute_and_another_line_at_once() -> None:
    loop, said = VirtualLoop(), Seldom(structlog.get_logger("test"))

    async def say() -> None:
        said.warning("away", why="no route")
        said.warning("away", why="no route")

    with capture_logs() as logged:
        for _ in range(150):
            loop.run(say())
            loop.advance(1)
        loop.run(say_more(said))
    loop.close()
    assert [(line["event"], line["log_level"], line.get("why")) for line in logged] == [
        *[("away", "warning", "no route")] * 3,
        ("away", "error", "refused"),
        ("gone", "error", None),
    ]
