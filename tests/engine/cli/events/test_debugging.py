"""`dspex replay RUN --at OPERATOR --pdb`: the debugger in an operator's function, with event, state and context of then."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cli_bench import Project, Seen

FLOW = """
from dataclasses import dataclass

from dspex import Topology

@dataclass
class Sized:
    text: str
    size: int

def sized(data: dict) -> Sized:
    found = Sized(data["text"], len(data["text"]))
    return found

def louder(data):
    text = data["text"].upper()
    return {**data, "text": text}

def total(state, data, ctx):
    now = state + len(data["text"])
    return now, [{"text": data["text"], "total": now}]

topology = Topology("flow")
read = topology.source("UNIQUE.in").filter("has(text)", name="read").map(louder, name="louder")
plain = read.set({"size": "len(text)"}, name="size")
summed = plain.key_by("kind", name="by_kind").stateful(total, init=int, name="total")
summed.sink("UNIQUE.out")
summed.map(sized, name="typed").sink("UNIQUE.sized")
"""


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[tuple[Project, str]]:
    """A project whose functions are Python's, and its second run."""
    project = Project(
        tmp_path_factory.mktemp("flow"), f"f{os.urandom(5).hex()}", 'topologies = ["flow:topology"]', NATS_URL=nats_url
    )
    project.write("flow.py", FLOW.replace("UNIQUE", project.u))
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        project.publish("text=ab", "kind=x")
        yield project, project.publish("text=abc", "kind=x").objects()[0]["run"]
        assert run.end() == 0, run.errors()


def debug(flow: tuple[Project, str], at: str, *commands: str) -> str:
    project, run = flow
    found = project.here("replay", run, "--at", at, "--pdb", stdin="".join(f"{command}\n" for command in commands))
    assert found.code == 0, found.err
    return found.out


def test_it_stops_in_the_first_line_of_the_function_and_leaving_changes_nothing(flow: tuple[Project, str]) -> None:
    out = debug(flow, "louder", "p data, event.run == context.event.run, event.data", "n", "p text", "q")
    assert 'text = data["text"].upper()' in out
    assert "({'text': 'abc', 'kind': 'x'}, True, {'text': 'abc', 'kind': 'x'})" in out
    assert "'ABC'" in out
    assert out.endswith("same\n")


def test_what_follows_uses_what_was_changed_also_behind_a_hop(flow: tuple[Project, str]) -> None:
    out = debug(flow, "louder", "data['text'] = 'changed'", "operator", "c")
    assert "total: operator" not in out
    lines = [line.split() for line in out.splitlines()]
    assert any(words[:4] == ["text", "ABC", "→", "CHANGED"] for words in lines)
    assert any(words[:4] == ["total", "5", "→", "9"] for words in lines)


def test_the_state_is_that_of_then_and_it_goes_from_one_operator_to_the_next(flow: tuple[Project, str]) -> None:
    out = debug(flow, "total", "p 'then', state, ctx.key", "state = 40", "c")
    assert "('then', 2, 'x')" in out
    assert any(line.split()[:4] == ["total", "5", "→", "43"] for line in out.splitlines())
    out = debug(flow, "read", "op", "p 'here', data", "op", "given['size'] = 7", "op", "p state", "c")
    assert (
        out.index("read: operator") < out.index("louder: operator") < out.index("size: operator") < out.index("total: operator")
    )
    assert "('here', {'text': 'abc', 'kind': 'x'})" in out
    assert any(line.split()[:4] == ["size", "3", "→", "7"] for line in out.splitlines())


def test_a_value_that_is_set_and_fits_no_type_is_told_with_its_nearest_form(flow: tuple[Project, str]) -> None:
    out = debug(flow, "typed", "n", "found.size = 'five'", "c")
    assert 'does not fit: typed: size: int, and "five" is none; size:=1, as JSON' in out
    assert "does not fit" not in debug(flow, "typed", "n", "found.size = 5", "c")


def test_an_operator_that_is_not_there_and_options_that_make_no_sense_are_refused(flow: tuple[Project, str]) -> None:
    project, run = flow
    error = project.here("--json", "replay", run, "--at", "louder", "--pdb").error()
    assert (error["code"], error["message"]) == ("DX105", "the debugger takes a run, and an operator to stop at")
    for options in (["--at", "louder"], ["--pdb"], ["--at", "louder", "--pdb", "--explain"]):
        assert "DX105" in project.here("replay", run, *options).err
    assert "DX105" in project.here("replay", "--topology", "flow", "--at", "louder", "--pdb").err
    assert "did you mean louder?" in project.here("replay", run, "--at", "luder", "--pdb").err
    assert "is run by workers, or is none" in project.here("replay", run, "--at", "by_kind", "--pdb").err


@pytest.mark.parametrize(
    ("typed", "code", "last"),
    [
        pytest.param("\x03", 130, "interrupted: nothing was written", id="^C"),
        pytest.param("n \x03", 130, "interrupted: nothing was written", id="^C behind a step", marks=pytest.mark.long),
        pytest.param("\x04", 0, "same", id="^D", marks=pytest.mark.long),
        pytest.param("q", 0, "same", id="q", marks=pytest.mark.long),
    ],
)
def test_whoever_leaves_at_the_prompt_gets_one_line_and_a_terminal_in_order(
    flow: tuple[Project, str], typed: str, code: int, last: str
) -> None:
    project, run = flow
    seen = Seen(project, "replay", run, "--at", "louder", "--pdb", typed=True)
    try:
        modes = seen.modes()
        for n, key in enumerate(typed.split(), 1):
            while seen.raw.count("(dspex) ") < n and seen.more():
                pass
            seen.type(key if key in ("\x03", "\x04") else f"{key}\r")
        assert seen.wait() == code, seen.lines()
        assert [line for line in seen.lines() if line][-1] == last
        assert seen.modes() == modes
        assert "Traceback" not in seen.raw
    finally:
        seen.close()
