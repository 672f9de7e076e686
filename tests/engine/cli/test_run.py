"""`dspex run` as a process: what it tells, how it ends, and what it refuses to start with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from cli_bench import NATIVE, NOT_ROOT, TRIAGE, Project, Running, Seen, needs_proc, objects
from waiting import eventually

from dspex.bus.local.server import LocalServer

pytestmark = pytest.mark.measured_processes  # nothing else runs what `dspex run` is made of

KEYED = """
dspex: 1
topology: keyed
sources: {{ {u}.in: {{}} }}
nodes:
  by_k: {{ from: {u}.in, key_by: k }}
  see: {{ from: by_k, set: {{ seen: "n + 1" }} }}
sinks: {{ {u}.out: {{ from: see }} }}
"""


@pytest.fixture
def project(tmp_path: Path, unique: str) -> Project:
    """A project with a server of its own."""
    made = Project(tmp_path, unique, 'topologies = ["native.yaml"]\nserver.local = { port = -1 }\n')
    made.write("native.yaml", NATIVE.format(u=unique))
    return made


def others(run: Running) -> list[psutil.Process]:
    """The engine processes that a run keeps beside itself."""
    return [p for p in psutil.Process(run.process.pid).children() if "--as-process" in p.cmdline()]


def test_a_call_that_is_submitted_has_a_worker_in_any_pool_or_it_is_said_who_has_to_start_one(project: Project) -> None:
    project.write(
        "dspex.toml",
        f'app = "{project.u}"\ntopologies = ["native.yaml"]\nserver.local = {{ port = -1 }}\nengine.submit = true\n'
        'lm.main = { model = "openai/a", base_url = "http://127.0.0.1:9/v1" }\n'
        "pools.lightweight = {}\npools.mine = { size = 2 }\npools.far = { gpus = 1, devices = [0] }\n",
    )
    with project.start("run") as run:
        run.until("ready in")
        text = "\n".join([*run.lines, run.errors()])  # the note was written before "ready in"
        assert all(said in text for said in ("lightweight 1/1 ready", "mine 2/2 ready", "pool far has GPUs")), text
        far = project.here("call", "text -> reply", "text=a", "--detach", "--pool", "far")
        assert (far.code, "no process of pool far answers now" in far.err, "dspex worker far" in far.err) == (0, True, True)
        assert run.end(signal.SIGTERM) == 0


def test_run_says_what_it_started_and_drains_on_sigterm(project: Project) -> None:
    with project.start("--json", "run", "--pools", "none") as run:
        run.until('"ready"')
        before = psutil.Process(run.process.pid).children(recursive=True)
        assert [p for p in before if "nats-server" in p.name()]
        assert project.publish("text=hello").code == 0
        assert run.end(signal.SIGTERM) == 0
        server, topology, ready, draining, stopped = objects("\n".join(run.lines))
        assert (server["event"], server["started"], server["local"]) == ("server", True, True)
        assert server["store"] == str(project.folder / ".dspex/jetstream")
        assert list(topology) == ["event", "topology", "digest", "nodes", "stages", "applied", "stream", "stream_applied"]
        assert (topology["topology"], topology["nodes"], topology["applied"]) == ("native", 4, "created")
        assert (ready["event"], draining, stopped["event"]) == ("ready", {"event": "draining", "signal": "SIGTERM"}, "stopped")
        psutil.wait_procs(before, 60)
        assert not any(p.is_running() for p in before)
    with project.start("run", "--pools", "none", "--processes", "2") as again:
        again.until("ready in")
        (other,) = others(again)
        assert f"topology  native {topology['digest'][:8]}  4 nodes, 1 stage; unchanged, stream" in "\n".join(again.lines)
        assert again.lines[0].startswith("server    nats://127.0.0.1:")
        assert "started, data in .dspex/jetstream, sync_interval 2 m" in again.lines[0]
        assert sum("ready, process 2 of 2" in line for line in again.lines) == 1
        assert again.end(signal.SIGINT) == 0
        assert "draining" in again.errors()
        assert not other.is_running()


@pytest.mark.long
def test_a_process_of_several_is_started_again_when_it_dies_while_events_go_on_and_none_outlives_the_first(
    project: Project,
) -> None:
    project.write("native.yaml", KEYED.format(u=project.u))
    rows = [{"k": f"k{n % 20}", "n": n} for n in range(1000)]
    parts = [project.write(f"{i}.jsonl", "".join(json.dumps(row) + "\n" for row in rows[i::2])) for i in range(2)]
    with project.start("--json", "run", "--pools", "none", "--processes", "3", "--grace", "1s") as run:
        run.until('"ready"')
        killed = others(run)[0]
        assert project.here("publish", project.input, "-f", parts[0]).code == 0
        killed.kill()  # in the middle of that
        assert project.here("publish", project.input, "-f", parts[1]).code == 0
        eventually(lambda: sum("engine ready" in line for line in run.lines) == 3)
        again = objects("\n".join(run.lines))[-1]
        engines = project.here("--json", "status").objects()[0]["engines"]
        assert (again["process"], {e["engine"] for e in engines if e["alive"]} >= {again["engine"]}) == (2, True)
        found = project.here("--json", "watch", project.output, "--start", "all", "--count", "1000").objects()
        for key in range(20):
            mine = [e["data"]["n"] for e in found if e["data"]["k"] == f"k{key}"]
            assert mine == [row["n"] for i in range(2) for row in rows[i::2] if row["k"] == f"k{key}"]
        left = psutil.Process(run.process.pid).children(recursive=True)
        assert len([p for p in left if "--as-process" in p.cmdline()]) == 2
        run.process.kill()
        assert not psutil.wait_procs(left, 60)[1]
        assert '"why": "it ended with exit code -9"' in run.errors()


@pytest.mark.long
def test_run_shows_in_place_what_runs_and_tears_no_log_line(project: Project) -> None:
    seen = Seen(project, "run", "--pools", "none")
    try:
        seen.until("ready in")
        for text in ("hello", "x", "y"):  # two are too short to be valid
            assert project.here("publish", project.input, f"text={text}").code == 0
        seen.until("native/check  InvalidInput  DX502")
        screen = seen.until(f"native/s1  {project.input}  0")  # while a state is told at length, names are cut
        assert seen.end() == 0
    finally:
        seen.close()
    lines = seen.lines()
    (stage,) = [line.split() for line in screen if line.startswith("native/s1  ")]
    assert (stage[:3], stage[-3:-1]) == (["native/s1", project.input, "0"], ["3", "0"])  # lag; events, open calls
    assert any(line.split() == ["native/check", "2"] for line in screen)
    letters = [line for line in lines if "dead letter  " in line]
    assert len(letters) == 2
    assert all(line.startswith("20") and "[warning" in line for line in letters)  # whole, and not behind something drawn
    assert "draining: what runs is finished and committed; once more to stop at once" in lines
    assert seen.raw.count("\x1b[?25l") == seen.raw.count("\x1b[?25h") == 1  # the cursor is there again


@pytest.mark.long
def test_a_run_begins_anew_when_its_files_change_to_what_can_run(project: Project) -> None:
    good = project.write("native.yaml", NATIVE.format(u=project.u).replace("len(text)", "len("))
    with project.start("run", "--pools", "none", "--reload") as run:
        eventually(lambda: "waiting for a change of the files" in run.errors())
        assert "error[DX208] count (native.yaml:9)" in run.errors()
        project.write(good, NATIVE.format(u=project.u))
        run.until("ready in")
        pid = int(json.loads((project.folder / ".dspex/server.json").read_text())["pid"])
        assert project.publish("text=hello").objects()[0]["outputs"][0]["data"]["size"] == 5
        project.write("programs.py", "def Draft(:")  # what no topology imports: a pool would
        eventually(lambda: "programs.py: SyntaxError: invalid syntax" in run.errors())
        project.write(good, NATIVE.format(u=project.u).replace("len(text)", "2 * len(text)"))
        eventually(lambda: "changed: native.yaml, programs.py; it cannot run" in run.errors())
        assert project.publish("text=again").objects()[0]["outputs"][0]["data"]["size"] == 5
        assert psutil.pid_exists(pid)
        (project.folder / "programs.py").unlink()
        eventually(lambda: len([line for line in run.lines if "ready in" in line]) == 2)
        assert "changed: native.yaml, programs.py; starting again" in run.errors()
        assert project.publish("text=hello").objects()[0]["outputs"][0]["data"]["size"] == 10
        assert run.end() == 0


@pytest.mark.long
def test_a_run_that_waits_for_a_change_ends_with_the_code_of_what_is_wrong(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    module = tmp_path_factory.mktemp("elsewhere") / "elsewhere.py"
    module.write_text("topology =")
    with project.start("run", "elsewhere:topology", "--pools", "none", "--reload", PYTHONPATH=str(module.parent)) as run:
        eventually(lambda: "waiting for a change of the files" in run.errors())
        module.write_text("topology = 1")
        eventually(lambda: "elsewhere.py; it cannot run" in run.errors())
        assert run.end(signal.SIGINT) == 3


def test_a_folder_that_is_no_project_is_not_looked_at_for_changes(project: Project) -> None:
    for number in range(5000):
        (project.folder / f"data{number}").mkdir()
    found = project.here("--json", "run", "--pools", "none", "--reload")
    assert (found.code, found.error()["code"]) == (2, "DX100")
    assert "without --reload" in found.error()["fix"]


def test_a_second_signal_ends_a_run_at_once(project: Project) -> None:
    with project.start("--json", "run", "--pools", "none", "--grace", "20s") as run:
        run.until('"ready"')
        server = int(json.loads((project.folder / ".dspex/server.json").read_text())["pid"])
        os.kill(server, signal.SIGSTOP)  # a drain cannot commit on a server that does not answer
        try:
            run.process.send_signal(signal.SIGINT)
            run.until('"draining"')
            assert run.end(signal.SIGTERM) == 143
        finally:
            os.kill(server, signal.SIGCONT)
        eventually(lambda: not psutil.pid_exists(server))


@pytest.mark.long
def test_a_file_is_stored_whole_and_once_though_the_server_dies_meanwhile(project: Project) -> None:
    (project.folder / "rows.jsonl").write_text("".join(f'{{"text":"row {i}"}}\n' for i in range(300)))
    with project.start("--json", "run", "--pools", "none") as run:
        run.until('"ready"')
        with project.start("--json", "publish", project.input, "-f", "rows.jsonl", "--rate", "200/s") as publish:
            publish.until('"seq"')
            os.kill(int(json.loads((project.folder / ".dspex/server.json").read_text())["pid"]), signal.SIGKILL)
            assert publish.process.wait(60) == 0, publish.errors()
        again = project.publish("-f", "rows.jsonl")
        assert again.code == 0, again.err
        found = again.objects()
        assert [r["duplicate"] for r in found] == [True] * 300
        assert [o["data"]["text"] for r in found for o in r["outputs"]] == [f"row {i}" for i in range(300)]
        assert run.end() == 0


def test_a_pool_that_cannot_start_stops_the_run_with_its_error(project: Project) -> None:
    project.write("triage.yaml", TRIAGE.format(u=project.u, signature="text -> reply"))
    project.write(
        "dspex.toml",
        'topologies = ["triage.yaml"]\nserver.local = { port = -1 }\n[lm.main]\nmodel = "openai/x"\nkey_env = "NO_KEY"\n',
    )
    found = project.here("--json", "run")
    assert (found.code, found.error()["code"], found.error()["node"]) == (2, "DX112", "lm.main")
    human = project.here("run")
    assert "error[DX112] lm.main: the variable NO_KEY, named by key_env" in human.err
    assert '"v":1' not in human.err


@needs_proc
def test_no_other_process_of_the_user_can_look_into_a_run(project: Project) -> None:
    """Programs of its pools are such processes, and its environment has the keys of all of them."""
    with project.start("--json", "run", "--pools", "none", under=NOT_ROOT) as run:
        run.until('"ready"')
        look = [*NOT_ROOT, "head", "-c", "1", f"/proc/{run.process.pid}/environ"]
        assert "denied" in subprocess.run(look, capture_output=True, text=True).stderr
        assert run.end() == 0, run.errors()


def test_a_sink_that_another_stream_captures_is_refused_before_anything_runs(project: Project, nats_url: str) -> None:
    with project.start("--server", nats_url, "run", "--pools", "none") as run:
        run.until("ready")
        other = Project(project.folder, f"{project.u}x", 'topologies = ["other.yaml"]', NATS_URL=nats_url)
        project.write("other.yaml", NATIVE.format(u="z" + project.u).replace(f"z{project.u}.out", project.output))
        found = other.here("--json", "run", "--pools", "none")
        assert (found.code, found.error()["code"]) == (4, "DX406")
        assert f"captured by stream DSPEX_{project.u}" in found.error()["message"]
        assert run.end() == 0


@pytest.mark.parametrize(
    ("args", "code", "error"),
    [
        (["run", "--no-server", "--pools", "none"], 4, "DX401"),
        (["run", "none:topology"], 3, "DX221"),
        (["run", "raises:topology"], 3, "DX221"),
        (["run", "native.yaml", "copy.yaml"], 3, "DX201"),
        (["run", "--pools", "gpu"], 2, "DX133"),
        (["run", "--grace", "long"], 2, "DX102"),
        (["run", "--processes", "0"], 2, "DX105"),
        (["run", "--processes", "65"], 2, "DX105"),
        (["run", "calling.yaml"], 2, "DX138"),
        (["--config", "empty.toml", "run"], 2, "DX135"),
        (["--server", "nats://127.0.0.1:1", "run", "--pools", "none"], 4, "DX401"),
    ],
)
def test_a_topology_that_cannot_run_is_refused_with_the_code_of_its_kind(
    project: Project, args: list[str], code: int, error: str
) -> None:
    project.write("copy.yaml", NATIVE.format(u="copy" + project.u))
    project.write("raises.py", "1 / 0\n")
    calling = TRIAGE.replace('predict: "{signature}"', 'program: "programs:Draft", signature: "text -> reply"')
    project.write("calling.yaml", calling.format(u=project.u))
    project.write("empty.toml", "")
    found = project.here("--json", *args)
    assert (found.code, found.error()["code"]) == (code, error)
    assert LocalServer.find(project.folder) is None
