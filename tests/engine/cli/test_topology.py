"""`dspex init`, `check` and `show`: output and exit codes; none of them needs a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from cli_bench import Done, in_this_process

PROBLEM = ["v", "code", "level", "topology", "node", "file", "line", "message", "fix"]
GOOD = """
dspex: 1
topology: good
sources: { in.a: {} }
nodes:
  big: { from: in.a, filter: "n > 1" }
  ask: { from: big, predict: "n: int -> word", lm: local }
  split: { from: ask, branch: ["word == 'a'"] }
  both: { from: [split.0, split.rest], merge: {} }
sinks: { out.a: { from: both } }
"""
BAD = """
dspex: 1
topology: bad
sources: { in.a: {} }
nodes:
  one: { from: two, filter: "n > 1" }
  two: { from: one, filter: "n > 1" }
  three: { from: in.a, filtr: "n > 1" }
  ask: { from: in.a, predict: "a -> b", pool: gpu, lm: huge }
sinks: { out.a: { from: ask }, out.b: { from: three } }
"""
TIMED = """
dspex: 1
topology: timed
sources: { in.a: {} }
nodes:
  by: { from: in.a, key_by: c }
  all: { from: by, window: 1m, count: {} }
  ten: { from: by, batch: 10, within: 1s }
sinks: { out.a: { from: all }, out.b: { from: ten } }
"""
Dspex = Callable[..., Done]


@pytest.fixture
def dspex(tmp_path: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dspex]:
    """Commands in an empty folder, without settings from outside; what they import is forgotten at the end."""
    before, path = set(sys.modules), list(sys.path)

    def run(*args: str, cwd: Path = tmp_path) -> Done:
        monkeypatch.chdir(cwd)
        return in_this_process(*args)

    yield run
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("options", [[], ["--yaml", "--no-key"]])
def test_a_new_project_is_valid_and_is_never_written_over_another(dspex: Dspex, tmp_path: Path, options: list[str]) -> None:
    made = dspex("--json", "init", "shop", *options)
    (said,) = map(json.loads, made.out.splitlines())
    assert (made.code, said["v"], len(said["next"])) == (0, 1, 3)
    assert all((tmp_path / file).is_file() for file in said["files"])
    assert ".dspex/" in (tmp_path / "shop/.gitignore").read_text()
    (tmp_path / "shop/below").mkdir()
    checked = dspex("check", "--strict", cwd=tmp_path / "shop/below")  # settings and what they name are found from below
    assert (checked.code, checked.out) == (0, "ok support-triage 7 nodes\n"), checked.out
    again = dspex("init", "shop")
    assert (again.code, "would be overwritten" in again.err) == (2, True)


def test_init_leaves_an_existing_gitignore_alone(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine\n")
    assert dspex("init").code == 0
    assert (tmp_path / ".gitignore").read_text() == "mine\n"


def test_check_prints_every_problem_with_its_line_and_fix(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "good.yaml").write_text(GOOD)
    found = dspex("--json", "check", "bad.yaml", "good.yaml", "none.yaml", "none:x")
    problems: list[dict[str, Any]] = [json.loads(line) for line in found.out.splitlines()]
    assert (found.code, found.err) == (3, "")
    assert all(list(p) == PROBLEM and p["v"] == 1 and p["fix"] for p in problems)
    told = {(p["code"], p["node"], p["line"]) for p in problems}
    assert {("DX213", "two", 7), ("DX204", "three", 8), ("DX221", "none.yaml", None), ("DX221", "none:x", None)} <= told
    people = dspex("check", "good.yaml", "bad.yaml")
    assert people.out.splitlines()[0] == "ok good 6 nodes"
    assert "error[DX213] two (bad.yaml:7): node two is part of a cycle: one -> two -> one\n  fix: " in people.out


def test_check_knows_the_pools_and_models_of_the_settings(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(GOOD.replace("lm: local", "lm: [huge, local], pool: gpu"))
    found = dspex("check", "t.yaml")
    assert found.code == 3
    assert "error[DX133] ask (t.yaml:7): there is no pool 'gpu'" in found.out
    assert "error[DX111] ask (t.yaml:7): there is no language model 'huge'" in found.out


def test_check_names_what_the_settings_name_and_what_is_not_there(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(GOOD)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/there.py").touch()
    (tmp_path / "dspex.toml").write_text(
        'topologies = ["t.yaml"]\npath = ["mine", "nosuchfolder"]\n'
        'http.calls = { one = "good/ask", two = "good/nosuch", three = "text -> lang" }\n'
        'pools.lightweight.programs = ["nosuch:*", "there.below:f", "there:*", "json.decoder:*", "shop_*:f"]\n'
        'budgets.a = { topology = "god", requests = 1, per = "day" }\n'
        'budgets.b = { topology = "good", requests = 1, per = "day" }\n'
    )
    found = dspex("--json", "check")
    problems = [json.loads(line) for line in found.out.splitlines() if '"code"' in line]
    assert found.code == 3
    assert [(p["node"], p["line"], p["level"]) for p in problems] == [
        ("path", 2, "error"),
        ("pools.lightweight.programs", 4, "warning"),  # where the pool runs it may be there
        ("pools.lightweight.programs", 4, "warning"),
        ("budgets.a.topology", 5, "error"),
        ("http.calls.two", 3, "error"),
    ]
    said = [p["message"] + p["fix"] for p in problems]
    for message, words in zip(
        said, ["'nosuchfolder'", "'nosuch'", "'there.below'", "did you mean good?", "good/ask"], strict=True
    ):
        assert words in message
    assert "god" not in dspex("check", "t.yaml").out  # there may be other topologies


def test_check_names_a_model_that_the_pool_of_a_call_may_not_use(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "dspex.toml").write_text(
        'lm.main.model = "openai/a"\nlm.huge.model = "openai/b"\n'
        'pools.lightweight = { lm = "main" }\npools.gpu = { lms = ["huge"] }\n'
    )
    (tmp_path / "t.yaml").write_text(GOOD.replace("lm: local", "lm: [huge, main]"))
    found = dspex("check", "t.yaml")
    assert found.code == 3
    assert "error[DX113] ask (t.yaml:7): pool lightweight may not use lm.huge\n  fix: pools.lightweight.lms = [" in found.out
    (tmp_path / "t.yaml").write_text(GOOD.replace("lm: local", "lm: [huge, main], pool: gpu"))
    assert dspex("check", "t.yaml").code == 0


def test_check_and_the_settings_want_the_price_of_each_model_of_which_the_cheapest_is_asked(
    dspex: Dspex, tmp_path: Path
) -> None:
    models = '[lm]\nlocal = { model = "local/x" }\nbig = { model = "openai/b" }\n'
    (tmp_path / "dspex.toml").write_text(models)
    (tmp_path / "t.yaml").write_text(GOOD.replace("lm: local", "lm: [local, big], choose: cheapest"))
    found = dspex("check", "t.yaml")
    assert found.code == 3
    assert "error[DX105] ask (t.yaml:7): choose is cheapest, and lm.big has no price\n  fix: say what it costs: " in found.out
    (tmp_path / "dspex.toml").write_text(models + '[defaults.call]\nlm = ["big", "local"]\nchoose = "cheapest"\n')
    found = dspex("config", "show")
    assert found.code == 2
    assert "choose is cheapest, and lm.big has no price" in found.err, "defaults.call.choose"
    (tmp_path / "dspex.toml").write_text(models.replace('/b" }', '/b", price = { input = 1, output = 4 } }'))
    assert dspex("check", "t.yaml").code == 0


PROGRAMS = """
dspex: 1
topology: calling
sources: { in.a: {} }
nodes:
  draft: { from: in.a, program: "programs:Draft", signature: "text -> reply", pool: writers, fallback: { reply: "canned" } }
  find: { from: in.a, react: "text -> found", tools: ["tools.web:search"], pool: writers, fallback: { found: "nothing" } }
sinks: { out.a: { from: draft }, out.b: { from: find } }
"""


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ([], {"draft", "find"}),
        (["programs:*"], {"find"}),
        (["*:*"], {"find"}),  # a wildcard crosses no dot
        (["programs:Drafts", "tools.web:search"], {"draft"}),
        (["programs:Draft", "tools.*:*"], set()),
    ],
)
def test_check_names_what_no_pool_allows_though_a_fallback_would_hide_it(
    dspex: Dspex, tmp_path: Path, allowed: list[str], refused: set[str]
) -> None:
    (tmp_path / "t.yaml").write_text(PROGRAMS)
    (tmp_path / "dspex.toml").write_text(f"pools.writers = {{ programs = {allowed} }}\n")
    found = dspex("--json", "check", "t.yaml")
    problems: list[dict[str, Any]] = [json.loads(line) for line in found.out.splitlines()]
    assert {p["node"] for p in problems} == refused
    assert {p["code"] for p in problems} <= {"DX138"}
    assert found.code == (3 if refused else 0)
    if refused:  # what it says to do is enough
        fixes = [p["fix"].removeprefix("allow it: ") for p in problems]
        (tmp_path / "dspex.toml").write_text(fixes[-1] + "\n")
        rest = dspex("--json", "check", "t.yaml").out.splitlines()
        assert {json.loads(line)["node"] for line in rest} == {p["node"] for p in problems[:-1]}


def test_check_notes_what_the_order_of_keys_means_for_events_without_one(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(GOOD.replace("lm: local", "lm: local, order: key"))
    found = dspex("check", "--strict", "t.yaml")
    note, fix, last = found.out.splitlines()
    assert (found.code, last) == (0, "ok good 6 nodes")
    assert note.startswith("note[DX322] ask (t.yaml:7): results are kept in the order of the events' keys, and events")
    assert fix == "  fix: dspex publish --key gives one"
    (told,) = dspex("check", "--strict", "--json", "t.yaml").objects()
    assert (told["code"], told["level"], told["node"], told["line"]) == ("DX322", "note", "ask", 7)
    (tmp_path / "dspex.toml").write_text('defaults.call.order = "key"\n')
    (tmp_path / "t.yaml").write_text(GOOD)
    assert "note[DX322] ask" in dspex("check", "t.yaml").out
    (tmp_path / "t.yaml").write_text(GOOD.replace('filter: "n > 1"', "key_by: name"))
    assert "DX322" not in dspex("check", "t.yaml").out


def test_check_fails_on_warnings_only_with_strict(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(GOOD.replace("[split.0, split.rest], merge: {}", "split.0, set: { x: n }"))
    mild, strict = dspex("check", "t.yaml"), dspex("check", "t.yaml", "--strict")
    assert (mild.code, strict.code) == (0, 3)
    assert strict.out.startswith("warning[DX321] split (t.yaml:8): nothing uses outlet rest")
    assert mild.out == f"{strict.out}ok good 6 nodes, 1 warning\n"


def test_a_topology_module_that_raises_is_reported_as_the_users_error(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text("import os\nos.nothing\n")
    found = dspex("check", "raises:topology")
    assert found.code == 3
    assert "'raises:topology' cannot be imported: AttributeError" in found.out
    assert "(raises.py:2)" in found.out
    assert "Traceback" not in found.out + found.err
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")  # which is no success
    for verb in (["check", "leaves:topology"], ["replay", "--file", ".", "--with", "leaves:topology"]):
        (tmp_path / "run.jsonl").touch()
        left = dspex(*verb)
        assert (left.code, "cannot be imported: SystemExit: 0 (leaves.py:2)" in left.out + left.err) == (3, True)
    nobody = dspex("check")
    assert (nobody.code, "error[DX135]" in nobody.err) == (2, True)


def test_show_draws_a_topology_as_a_tree(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    text = dspex("show", "good.yaml").out.splitlines()
    assert text[0].startswith("good ")
    assert text[0].endswith("6 nodes; 1 stage; pools lightweight")
    width = text[1].index("source")
    assert [line[:width].rstrip() for line in text[1:8]] == [
        "in.a",
        "└ big",
        "  └ ask",
        "    └ split",
        "      ├ .0 both",
        "      │ └ out.a",
        "      └ .rest both",
    ]
    assert text[7].endswith("as above")


def test_show_draws_operators_whose_main_option_is_a_number(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "timed.yaml").write_text(TIMED)
    done = dspex("show", "timed.yaml")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert [row[-2:] for row in rows if row[-2:-1] in (["window"], ["batch"])] == [["window", "60"], ["batch", "10"]]


def test_show_writes_a_topology_in_every_format(dspex: Dspex, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)

    def show(*args: str) -> str:
        done = dspex("show", *args)
        assert done.code == 0, done.err
        return done.out

    (tmp_path / "again.yaml").write_text(show("good.yaml", "--as", "yaml"))
    first, second = (json.loads(show(f, "--as", "json")) for f in ("good.yaml", "again.yaml"))
    assert (first["v"], first["digest"], first["pools"]) == (1, second["digest"], ["lightweight"])
    assert show("good.yaml", "--as", "mermaid").startswith("flowchart LR\n")
    jsonschema_rs.validate(json.loads(show("--schema")), yaml.safe_load(GOOD))
    assert json.loads(show("good.yaml", "--as", "asyncapi"))["asyncapi"] == "3.0.0"
    assert dspex("show", "good.yaml", "--as", "asynkapi").code == 2
