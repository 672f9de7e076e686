"""`dspex replay --build FOLDER`: with the code of then, which lies in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from cli_bench import Project, Seen

import dspex.sync
from dspex import Settings, Topology
from dspex.errors import ConfigError

CODE = """
from dspex import Topology
from words import length

def size(data):
    return {{"size": length(data["text"]){more}}}

topology = Topology("sizes")
topology.source("{u}.in").map(size, name="size").sink("{u}.out")
"""
WORDS = "def length(text):\n    return len(text)\n"
SETTINGS = 'topologies = ["sizes:topology"]\nserver.url = "{url}"\n'


def written(folder: Path, unique: str, more: str) -> str:
    """The code, in a folder."""
    (folder / "sizes.py").write_text(CODE.format(u=unique, more=more))
    (folder / "words.py").write_text(WORDS)
    return str(folder)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> tuple[Project, str]:
    """A run, and its project, whose code has changed since its runs were recorded; that of then lies beside it, in `then`."""
    folder = tmp_path_factory.mktemp("sizes")
    (folder / "now").mkdir()
    project = Project(folder / "now", f"b{os.urandom(5).hex()}", SETTINGS.format(url=nats_url))
    written(project.folder, project.u, "")
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        runs = project.publish("-", stdin='{"text":"abc"}\n{"text":"abcd"}\n').objects()
        assert run.end() == 0, run.errors()
    shutil.copytree(project.folder, folder / "then")
    written(project.folder, project.u, " + 1")
    return project, runs[1]["run"]


@pytest.fixture
def sizes(recorded: tuple[Project, str]) -> Project:
    return recorded[0]


@pytest.fixture
def run(recorded: tuple[Project, str]) -> str:
    return recorded[1]


def test_with_the_code_of_then_a_replay_is_the_same_and_with_that_of_today_it_differs(sizes: Project, run: str) -> None:
    today = sizes.here("--json", "replay", run)
    assert (today.code, today.objects()[0]["diverged"]["b"]) == (6, 5)
    _is_the_same(sizes, run)


@pytest.mark.long
@pytest.mark.parametrize("what", [["--topology", "sizes"], ["--range", "1:2"], ["{run}", "--mode", "hybrid"]])
def test_whatever_is_replayed_is_so_with_the_code_of_then(sizes: Project, run: str, what: list[str]) -> None:
    _is_the_same(sizes, *(word.format(run=run) for word in what))


def _is_the_same(sizes: Project, *what: str) -> None:
    found = sizes.dspex("--json", "replay", *what, "--build", "../then")
    (said,) = found.objects()
    assert (found.code, said["same"], said["builds"]) == (0, True, {}), found


@pytest.mark.long
def test_a_file_is_replayed_with_the_code_of_then_without_a_server(sizes: Project, run: str) -> None:
    assert sizes.dspex("runs", "export", run, "-o", "one.jsonl").code == 0
    for folder, code in (("../then", 0), (".", 2)):
        found = sizes.dspex("replay", "--file", "one.jsonl", "--build", folder, "--server", "nats://127.0.0.1:1")
        assert found.code == code, found
    assert "is not the build that recorded one.jsonl: functions: " in found.err


@pytest.mark.long
def test_of_a_folder_of_files_one_that_cannot_be_read_is_named_and_the_others_are_replayed(sizes: Project) -> None:
    assert sizes.dspex("runs", "export", "--topology", "sizes", "-o", "several").code == 0
    first, *others = sorted((sizes.folder / "several").iterdir())
    first.write_text("no file of a run")
    found = sizes.dspex("--json", "replay", "--file", "several", "--build", "../then")
    (said,) = found.objects()
    assert (found.error()["code"], said["runs"]) == ("DX501", len(others)), found
    assert [one["file"] for one in said["incomplete"]] == [f"several/{first.name}"]


@pytest.mark.long
def test_another_build_than_the_recorded_one_is_refused_and_both_are_named(sizes: Project, run: str, tmp_path: Path) -> None:
    shutil.copy(sizes.folder / "dspex.toml", tmp_path)
    wrong = written(tmp_path, sizes.u, " + 2")
    allowed = sizes.dspex("--json", "replay", run, "--build", wrong, "--any-build")
    (then, there) = allowed.objects()[0]["builds"]["functions"]
    assert (allowed.code, allowed.objects()[0]["diverged"]["b"]) == (6, 6)
    for what in ([run], ["--topology", "sizes"], [run, "--mode", "live"]):
        found = sizes.dspex("--json", "replay", *what, "--build", wrong)
        error = found.error()
        assert (found.code, found.out, error["code"]) == (2, "", "DX143"), found
        assert f"the code in {wrong} is not the build that recorded" in error["message"]
        assert f": functions: {then} then, {there} there; sizes.py: " in error["message"]


@pytest.mark.long
def test_another_helper_that_functions_import_is_another_build_and_its_file_is_named(
    sizes: Project, run: str, tmp_path: Path
) -> None:
    shutil.copy(sizes.folder / "dspex.toml", tmp_path)
    wrong = written(tmp_path, sizes.u, "")
    (tmp_path / "words.py").write_text(WORDS.replace("len(text)", "len(text) + 7"))
    error = sizes.dspex("--json", "replay", run, "--build", wrong).error()
    assert (error["code"], ": words.py: " in error["message"], "functions" in error["message"]) == ("DX143", True, False)
    (told,) = sizes.dspex("--json", "replay", run, "--build", wrong, "--any-build").objects()
    assert (told["diverged"]["b"], list(told["builds"])) == (11, ["words.py"])
    (tmp_path / "words.py").write_text(f"# the same\n\n{WORDS}")
    assert sizes.dspex("replay", run, "--build", wrong).code == 0


@pytest.mark.long
def test_what_an_older_dspex_recorded_is_of_a_build_that_names_no_files_and_is_replayed(sizes: Project, run: str) -> None:
    assert sizes.dspex("runs", "export", run, "-o", "older.jsonl").code == 0
    file = sizes.folder / "older.jsonl"
    head, *rows = file.read_text().splitlines()
    said = json.loads(head)
    for one in said["builds"]["sizes"]:
        one.pop("files")
        one.pop("words.py")
        one.pop("sizes.py")
    file.write_text("\n".join([json.dumps(said), *rows]) + "\n")
    found = sizes.dspex("replay", "--file", "older.jsonl", "--build", "../then")
    assert (found.code, found.out.count("older way of naming builds"), "other build" in found.out) == (0, 1, False), found
    today = sizes.dspex("replay", "--file", "older.jsonl")
    assert (today.code, "other build: functions: " in today.out, "damaged" in today.err) == (6, True, False), today
    (told,) = sizes.dspex("--json", "replay", "--file", "older.jsonl", "--build", "../then").objects()
    assert (told["same"], list(told["builds"]), told["builds"]["files"][0]) == (True, ["files"], "")


def test_the_application_and_its_server_are_those_of_here(sizes: Project, run: str, tmp_path: Path) -> None:
    written(tmp_path, sizes.u, "")
    (tmp_path / "dspex.toml").write_text('app = "moved"\n' + SETTINGS.format(url="nats://127.0.0.1:1"))
    (said,) = sizes.dspex("--json", "replay", run, "--build", str(tmp_path)).objects()
    assert (said["same"], said["builds"]) == (True, {})


@pytest.mark.long
def test_a_fork_under_the_code_of_then_is_replayed_with_that_code(sizes: Project, run: str) -> None:
    made = sizes.dspex("--json", "fork", run, "--at", "size", "--input", "text=abcdef", "--build", "../then", "--diff")
    (fork,) = made.objects()
    assert [(step["field"], step["b"]) for step in fork["diff"]["steps"]] == [("size", 6)]
    (today,) = sizes.dspex("--json", "replay", fork["run"]).objects()
    assert (today["same"], sorted(today["builds"])) == (False, ["functions", "sizes.py"])
    (then,) = sizes.dspex("--json", "replay", fork["run"], "--build", "../then").objects()
    assert (then["same"], then["builds"]) == (True, {})
    both = sizes.here("--json", "fork", run, "--at", "size", "--with", "sizes:topology", "--build", "../then").error()
    assert (both["code"], "--with and --build do not go together" in both["message"]) == ("DX105", True)


@pytest.mark.long
def test_a_client_replays_and_forks_with_the_code_of_then(sizes: Project, run: str, tmp_path: Path) -> None:
    settings, then = Settings.load(sizes.folder / "dspex.toml"), sizes.folder.parent / "then"
    shutil.copy(sizes.folder / "dspex.toml", tmp_path)
    wrong = written(tmp_path, sizes.u, " + 2")
    with dspex.sync.connect(settings=settings) as client:
        found, all_of_it = client.replay(run, build=then), client.replay(topology="sizes", since="1d", build=then)
        assert (found.same, found.runs, found.builds, all_of_it.same, all_of_it.runs > 1) == (True, 1, {}, True, True)
        with pytest.raises(ConfigError, match="is not the build that recorded") as e:
            client.replay(run, build=wrong)
        assert e.value.code == "DX143"
        other = client.replay(run, build=wrong, any_build=True)
        assert other.diverged is not None
        assert (other.same, other.diverged.field, other.diverged.b, "functions" in other.builds) == (False, "size", 6, True)
        fork = client.fork(run, "size", inputs={"text": "abcdef"}, build=then)
        assert [event.data["size"] for event in fork.outputs()] == [6]
        for refused in (
            lambda: client.replay(run, any_build=True),
            lambda: client.fork(run, "size", topology=Topology("other"), build=then),
            lambda: client.replay(topology=Topology("other"), build=then),
        ):
            with pytest.raises(ConfigError) as e:
                refused()
            assert e.value.code == "DX105"


@pytest.mark.long
def test_a_run_is_shown_and_explained_with_the_code_of_then_and_with_other_code_that_is_said(sizes: Project, run: str) -> None:
    today = sizes.dspex("runs", "show", run)
    assert ("~ size#0" in today.out, "other build: sizes.py: " in today.out) == (False, True), today
    assert "--build FOLDER with the code of then" in today.err
    (head, *_) = sizes.dspex("--json", "runs", "show", run).objects()
    assert sorted(head["builds"]) == ["functions", "sizes.py"]
    then = sizes.dspex("runs", "show", run, "--build", "../then")
    assert ("~ size#0" in then.out, "other build" in then.out, then.code) == (True, False, 0), then
    (head, _, native, _) = sizes.dspex("--json", "runs", "show", run, "--build", "../then").objects()
    assert (head["builds"], native["kind"], native["recorded"]) == ({}, "native", False)
    assert sizes.dspex("--json", "runs", "show", run, "--build", ".").error()["code"] == "DX143"
    forced = sizes.dspex("runs", "explain", run, f"{sizes.u}.out", "--with", "sizes:topology")
    assert ("~ size#0" in forced.out, "other build: functions: " in forced.err, forced.code) == (True, True, 0), forced
    way = sizes.dspex("--json", "runs", "explain", run, f"{sizes.u}.out", "--build", "../then").objects()
    assert [one["kind"] for one in way] == ["source", "native", "output"]


@pytest.mark.long
def test_a_candidate_is_judged_in_the_code_of_a_folder_and_what_is_another_build_is_said(sizes: Project) -> None:
    judged = "--json", "eval", "--metric", "exact_match", "--field", "size"
    *_, now = sizes.dspex(*judged).objects()
    assert (now["mean"], sorted(now["builds"])) == (0.0, ["functions", "sizes.py"])
    *_, then = sizes.dspex(*judged, "--build", "../then").objects()
    assert (then["mean"], then["builds"]) == (1.0, {})
    found = sizes.dspex(*judged[1:])
    assert "other build: sizes.py: " in found.out, found
    assert sizes.dspex("--json", "shadow", "--build", "nowhere").error()["code"] == "DX105"


@pytest.mark.long
def test_the_debugger_stops_in_the_code_of_then(sizes: Project, run: str) -> None:
    seen = Seen(sizes, "replay", run, "--at", "size", "--pdb", "--build", "../then", typed=True)
    try:
        while "(dspex) " not in seen.raw and seen.more():
            pass
        seen.type("c\r")
        assert seen.wait() == 0, seen.lines()
        assert any("then/sizes.py(" in line for line in seen.lines())
        assert [line for line in seen.lines() if line][-1] == "same"
    finally:
        seen.close()


@pytest.mark.long
def test_nothing_is_imported_from_where_the_command_is_typed(sizes: Project, run: str, tmp_path: Path) -> None:
    shutil.copy(sizes.folder / "dspex.toml", tmp_path)
    whole = written(tmp_path, sizes.u, "")
    (tmp_path / "words.py").unlink()
    error = sizes.dspex("--json", "replay", run, "--build", whole).error()
    assert (error["code"], "No module named 'words'" in error["message"]) == ("DX221", True)


@pytest.mark.long
def test_the_interpreter_of_the_folder_runs_its_code(sizes: Project, run: str, tmp_path: Path) -> None:
    shutil.copy(sizes.folder / "dspex.toml", tmp_path)
    folder = written(tmp_path, sizes.u, "")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONHASHSEED=7 exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    error = sizes.dspex("--json", "replay", run, "--build", folder).error()
    assert error["message"].endswith("hash seed: random then, 7 there")
    python.write_text("#!/bin/sh\necho 'No module named dspex' >&2\nexit 1\n")
    error = sizes.dspex("--json", "replay", run, "--build", folder).error()
    assert (error["code"], "python cannot run dspex: No module named dspex" in error["message"]) == ("DX105", True)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--build", "nowhere"], "nowhere has no dspex.toml"),
        (["--build", "within"], "within has no dspex.toml"),  # though the folder around it has one
        (["--any-build"], "--any-build is about --build"),
    ],
)
def test_what_names_no_code_of_then_is_refused(sizes: Project, run: str, options: list[str], why: str) -> None:
    (sizes.folder / "within").mkdir(exist_ok=True)
    error = sizes.here("--json", "replay", run, *options).error()
    assert (error["code"], why in error["message"]) == ("DX105", True)
