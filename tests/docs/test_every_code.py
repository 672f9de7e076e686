"""Every error code has a real trigger, one meaning, and a fix that works when it is followed."""

from __future__ import annotations

import ast
import re
import runpy
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cli_bench import in_this_process
from error_triggers import ELSEWHERE
from pydantic import BaseModel

from dspex.bus import subjects
from dspex.bus.errors import CallError, DspexError, Reject
from dspex.bus.memory.server import MemoryServer
from dspex.bus.serving.keys import keyring
from dspex.bus.settings.model import Settings
from dspex.engine.cli.terminal.arguments import records
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology
from dspex.workers.config import adapter_of
from dspex.workers.models import weights

ROOT = Path(__file__).parents[2]
MAKE: dict[str, Any] = runpy.run_path(str(ROOT / "docs/make/errors.py"))
ROWS = {row[0]: row for row in MAKE["rows"]()}
NEVER = {c.code for c in MAKE["classes"]() if c.__name__ in MAKE["NOT_RAISED"]}

# -- triggers that are tried here: (what is wrong, the same after following the fix) -----------------------------------
SETTINGS = {
    "DX102": ('engine.heartbeat = "soon"', 'engine.heartbeat = "10s"'),
    "DX103": ('engine.claim_check_above = "much"', 'engine.claim_check_above = "512KiB"'),
    "DX104": ('engin.heartbeat = "1s"', 'engine.heartbeat = "1s"'),
    "DX105": ("pools.a.size = -1", "pools.a.size = 1"),
    "DX106": ("app = ", 'app = "shop"'),
    "DX107": ('server.context = "nowhere"', ""),
    "DX108": ('engine.commit.max_wait = "20ms"', ""),
    "DX110": ('lm.main = { model = "openai/x", api_key = "sk-1" }', 'lm.main = { model = "openai/x", key_env = "KEY" }'),
    "DX111": ('pools.a.lm = "man"\nlm.main.model = "openai/x"', 'pools.a.lm = "main"\nlm.main.model = "openai/x"'),
    "DX121": ('telemetry.log = "loud"', 'telemetry.log = "info,dspex.engine=debug"'),
}


class Order(BaseModel):
    text: str
    n: int = 0


def same(data: Any) -> Any:
    return data


Grow = Callable[[Topology], object]
LITERAL = "text -> a: Literal['x', 'y']"
TOPOLOGIES: dict[str, tuple[Grow, Grow]] = {
    "DX201": (
        lambda t: t.source("in").map(same, name="a").map(same, name="a").sink("out"),
        lambda t: t.source("in").map(same, name="a").map(same, name="b").sink("out"),
    ),
    "DX202": (
        lambda t: t.source("in").map(same, name="A b").sink("out"),
        lambda t: t.source("in").map(same, name="a_b").sink("out"),
    ),
    "DX204": (
        lambda t: t.source("in").predict("text -> a", name="ask", pol="a").sink("out"),  # type: ignore[call-arg]
        lambda t: t.source("in").predict("text -> a", name="ask", pool="a").sink("out"),
    ),
    "DX205": (
        lambda t: t.source("in").validate(Order, on_error="stop").sink("out"),  # type: ignore[arg-type]
        lambda t: t.source("in").validate(Order, on_error="skip").sink("out"),
    ),
    "DX207": (
        lambda t: t.source("in", type=Order).predict("txt -> a", name="ask").sink("out"),
        lambda t: t.source("in", type=Order).predict("txt -> a", name="ask", inputs={"txt": "text"}).sink("out"),
    ),
    "DX208": (lambda t: t.source("in").filter("n ===").sink("out"), lambda t: t.source("in").filter("n == 1").sink("out")),
    "DX209": (
        lambda t: t.source("in").predict("text -> a: Intent", name="ask").sink("out"),
        lambda t: t.source("in").predict(LITERAL, name="ask").sink("out"),
    ),
    "DX210": (
        lambda t: t.source("in").predict("text, a", name="ask").sink("out"),
        lambda t: t.source("in").predict("text -> a", name="ask").sink("out"),
    ),
    "DX212": (
        lambda t: t.source("in").predict("text -> n: str", name="ask", into=Order).sink("out"),
        lambda t: t.source("in").predict("text -> n: int", name="ask", into=Order).sink("out"),
    ),
    "DX214": (lambda t: t.source("in").map(same, name="a"), lambda t: t.source("in").map(same, name="a").sink("out")),
    "DX215": (
        lambda t: [t.source(name).sink("out") for name in ("a", "b")],
        lambda t: t.source("a").merge(t.source("b")).sink("out"),
    ),
    "DX216": (lambda t: t.source("in").sink("in"), lambda t: t.source("in").sink("out")),
    "DX217": (lambda t: t.source("in").sink("out."), lambda t: t.source("in").sink("out.a")),
    "DX218": (
        lambda t: t.source("in").program(lambda text: text, "text -> a", name="ask").sink("out"),  # type: ignore[arg-type]
        lambda t: t.source("in").program("programs:Draft", "text -> a", name="ask").sink("out"),
    ),
    "DX219": (
        lambda t: t.source("in").map(lambda: 1, name="a").sink("out"),  # type: ignore[arg-type, misc]
        lambda t: t.source("in").map(lambda data: data, name="a").sink("out"),
    ),
    "DX225": (
        lambda t: t.source("in").render("Dear {customer", field="text").sink("out"),
        lambda t: t.source("in").render("Dear {customer}", field="text").sink("out"),
    ),
    "DX226": (
        lambda t: t.source("in").validate({"type": "nonsense"}).sink("out"),
        lambda t: t.source("in").validate({"type": "object"}).sink("out"),
    ),
    "DX227": (
        lambda t: t.source("in").merge(Topology("other").source("b")).sink("out"),
        lambda t: t.source("in").merge(t.source("b")).sink("out"),
    ),
    "DX228": (lambda t: None, lambda t: t.source("in").sink("out")),
    "DX229": (
        lambda t: t.source("in", type=Order).sink("out", codec="arrow"),
        lambda t: t.source("in", type=Order).sink("out", codec="auto"),
    ),
    "DX236": (
        lambda t: t.source("in").program("p:Q", "text -> a", name="ask", route="native").sink("out"),
        lambda t: t.source("in").program("p:Q", "text -> a", name="ask", route="worker").sink("out"),
    ),
    "DX237": (
        lambda t: t.source("in", codec="json").sink("out"),  # type: ignore[call-arg]
        lambda t: t.source("in").sink("out"),
    ),
}

YAML = "dspex: 1\ntopology: t\nsources: {{ in: {{}} }}\nnodes:\n  a: {{ {node} }}\nsinks: {{ out: {{ from: a }} }}\n"
FILES = {
    "DX206": (YAML.format(node='from: nowhere, filter: "n"'), YAML.format(node='from: in, filter: "n"')),
    "DX213": (YAML.format(node='from: a, filter: "n"'), YAML.format(node='from: in, filter: "n"')),
    "DX221": (YAML.format(node='from: in, map: "no.such:one"'), YAML.format(node='from: in, map: "json:dumps"')),
    "DX222": (YAML.format(node='from: in, from: in, filter: "n"'), YAML.format(node='from: in, filter: "n"')),
}


def rejects(data: Any) -> Any:
    if data["n"] < 0:
        raise Reject("n is below 0")
    return {"half": 1 / data["n"]}


EVENTS: dict[str, tuple[Grow, Any, Any]] = {
    "DX502": (lambda t: t.source("in").validate(Order).sink("out"), {"n": "many"}, {"text": "a", "n": 1}),
    "DX503": (lambda t: t.source("in").filter("size > 1").sink("out"), {"n": 1}, {"size": 2}),
    "DX505": (lambda t: t.source("in").map(rejects, name="halve").sink("out"), {"n": -1}, {"n": 1}),
    "DX507": (lambda t: t.source("in").map(rejects, name="halve").sink("out"), {"n": 0}, {"n": 1}),
}

CALLS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "DX101": (lambda: subjects.application("my shop"), lambda: subjects.application("my-shop")),
    "DX116": (lambda: adapter_of(None, "yaml"), lambda: adapter_of(None, "xml")),
    "DX120": (
        lambda: list(records(["text"], StringIO())),
        lambda: list(records(["text=a"], StringIO())),
    ),
    "DX130": (lambda: weights.find("gpt-9"), lambda: weights.find(weights.CATALOG[0].alias)),
    "DX224": (lambda: _frozen().source("more"), lambda: Topology("t").source("more")),
    "DX901": (lambda: _asked(False), lambda: _asked(True)),
}


def _frozen() -> Topology:
    topology = Topology("t")
    topology.source("in").sink("out")
    return topology.freeze()


def _asked(answered: bool) -> None:
    topology = Topology("t")
    topology.source("in").predict("text -> a", name="ask").sink("out")
    with Driver(topology) as d:
        if answered:
            d.answer("ask", {"a": "x"})
        d.publish("in", {"text": "hi"})


HERE = {"DX114", "DX125", "DX137", "DX310", "DX600"}  # tests of their own, below


def told(error: DspexError, code: str) -> None:
    """An error as a person gets it: the code, a message that begins like a sentence, one thing to do."""
    found = {p.code: (p.message, p.fix) for p in getattr(error, "problems", ())} | {error.code: (error.message, error.fix)}
    assert code in found, found
    message, fix = found[code]
    assert re.match(r"[\w'\"$*<({./]", message), message
    assert fix
    assert "bug in dspex" not in fix


def test_every_code_that_can_be_raised_has_a_trigger() -> None:
    tried = [*SETTINGS, *TOPOLOGIES, *FILES, *EVENTS, *CALLS, *ELSEWHERE, *HERE]
    assert sorted(tried) == sorted(ROWS.keys() - NEVER)


def test_the_triggers_that_other_tests_try_are_there() -> None:
    for code, place in ELSEWHERE.items():
        file, _, name = place.partition("::")
        text = (ROOT / "tests" / file).read_text()
        functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        named = [node for node in functions if name and node.name.startswith(name)]
        assert len(named) == 1, place
        parts = [ast.get_source_segment(text, node) or "" for node in (*named, *named[0].decorator_list)]
        assert any(code in part or ROWS[code][1].strip("`") in part for part in parts), f"{place} says nothing of {code}"


def test_a_code_has_one_meaning() -> None:
    assert [code for code, _, when, _ in ROWS.values() if "; or" in when] == []


@pytest.mark.parametrize("code", SETTINGS)
@pytest.mark.usefixtures("no_settings")
def test_a_mistake_in_the_settings_has_its_code_and_is_mended_by_its_fix(code: str, tmp_path: Path) -> None:
    wrong, right = SETTINGS[code]
    file = tmp_path / "dspex.toml"
    file.write_text(wrong)
    with pytest.raises(DspexError) as caught:
        Settings.load(file)
    told(caught.value, code)
    file.write_text(right)
    Settings.load(file)


@pytest.mark.parametrize("code", TOPOLOGIES)
def test_a_mistake_in_a_topology_has_its_code_and_is_mended_by_its_fix(code: str) -> None:
    def grown(grow: Grow) -> None:
        topology = Topology("t")
        grow(topology)
        topology.freeze()

    wrong, right = TOPOLOGIES[code]
    with pytest.raises(DspexError) as caught:
        grown(wrong)
    told(caught.value, code)
    grown(right)


@pytest.mark.parametrize("code", FILES)
def test_a_mistake_in_yaml_has_its_code_and_is_mended_by_its_fix(code: str, tmp_path: Path) -> None:
    wrong, right = FILES[code]
    file = tmp_path / "t.yaml"
    file.write_text(wrong)
    with pytest.raises(DspexError) as caught:
        Topology.load(file).freeze()
    told(caught.value, code)
    file.write_text(right)
    Topology.load(file).freeze()


@pytest.mark.parametrize("code", EVENTS)
def test_an_event_that_cannot_be_processed_has_its_code_and_another_is(code: str) -> None:
    grow, wrong, right = EVENTS[code]
    topology = Topology("t")
    grow(topology)
    with Driver(topology) as d:
        d.publish("in", wrong)
        (letter,) = d.dead_letters()
        assert letter.code == code
        assert re.match(r"[\w'\"]", letter.message)
        assert letter.fix
        d.publish("in", right)
        assert len(d.outputs("out")) == 1


@pytest.mark.parametrize("code", CALLS)
def test_a_wrong_argument_has_its_code_and_is_mended_by_its_fix(code: str) -> None:
    wrong, right = CALLS[code]
    with pytest.raises(DspexError) as caught:
        wrong()
    told(caught.value, code)
    right()


def test_without_a_nats_server_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from dspex.bus.local import launch

    monkeypatch.setattr(launch.os, "access", lambda *_: False)
    monkeypatch.setattr(launch.shutil, "which", lambda _: None)
    with pytest.raises(DspexError) as caught:
        launch.find_binary()
    told(caught.value, "DX114")


@pytest.mark.asyncio
async def test_nothing_can_be_forgotten_where_nothing_is_sealed() -> None:
    with pytest.raises(DspexError) as caught:
        await keyring.forget(MemoryServer().connect(), "shop", "ann")
    told(caught.value, "DX125")


def test_a_native_function_that_reads_the_clock_is_warned_of_until_it_takes_it_from_the_context() -> None:
    def codes(function: Callable[..., Any]) -> list[str]:
        topology = Topology("t")
        topology.source("in").map(function, name="stamp").sink("out")
        assert all(problem.fix and problem.level == "warning" for problem in topology.check())
        return [problem.code for problem in topology.check()]

    assert codes(lambda data: {**data, "at": time.time()}) == ["DX310"]
    assert codes(lambda data, ctx: {**data, "at": ctx.now}) == []


def test_a_call_that_failed_is_a_dead_letter_that_can_be_run_again() -> None:
    topology = Topology("t")
    topology.source("in").predict("text -> a", name="ask").sink("out")
    with Driver(topology) as d:
        d.fail("ask", CallError("the program gave up"))
        d.publish("in", {"text": "hi"})
        (letter,) = d.dead_letters()
        assert (letter.code, letter.message, "redrive" in (letter.fix or "")) == ("DX600", "the program gave up", True)
        d.answer("ask", {"a": "x"})
        assert (d.redrive(), len(d.outputs("out"))) == (1, 1)


def test_a_project_is_not_written_over_another(tmp_path: Path) -> None:
    assert in_this_process("init", str(tmp_path / "a")).code == 0
    assert in_this_process("--json", "init", str(tmp_path / "a")).error()["code"] == "DX137"
    assert in_this_process("init", str(tmp_path / "b")).code == 0
