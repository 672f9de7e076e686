"""`dspex status --health` and `doctor` as a shell sees them, on a real server: 0 where all is well, else 1 and the reasons."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_bench import NATIVE, TRIAGE, Project
from waiting import eventually

from dspex.bus import nats, subjects
from dspex.bus.port import Bus, StreamConfig

QUICK = 'topologies = ["native.yaml"]\nengine.stall_after = "1s"\n'


def on(url: str, do: Any) -> Any:
    """What `do(bus)` gives."""

    async def go() -> Any:
        bus = await nats.connect(url)
        try:
            return await do(bus)
        finally:
            await bus.close()

    return asyncio.run(go())


def reasons(project: Project) -> list[str]:
    """What --health says is wrong; the exit code agrees."""
    done = project.here("--json", "status", "--health")
    (said,) = done.objects()
    assert (done.code, said["healthy"]) == ((1, False) if said["faults"] else (0, True)), done.err
    assert all(list(fault) == ["check", "message", "fix"] for fault in said["faults"])
    return [fault["message"] for fault in said["faults"]]


@pytest.fixture
def project(tmp_path: Path, unique: str, nats_url: str) -> Project:
    """A folder with a native topology."""
    project = Project(tmp_path, unique, QUICK, NATS_URL=nats_url)
    project.write("native.yaml", NATIVE.format(u=unique))
    return project


def test_health_is_0_while_an_engine_runs_what_is_applied_and_1_with_the_reason_otherwise(project: Project) -> None:
    assert reasons(project) == [f"nothing is applied for app {project.u}"]
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        assert eventually(lambda: reasons(project) == [])
        human = project.here("status", "--health")
        assert (human.code, human.out) == (0, "healthy\n")
        assert run.end() == 0
    assert reasons(project) == ["no engine is running native"]
    human = project.here("status", "--health")
    assert (human.code, human.out) == (1, "engine  no engine is running native\n  fix: dspex run\n")
    assert project.here("status", "--health", "--watch").code == 2


def test_a_killed_engine_and_calls_without_a_worker_are_reasons(tmp_path: Path, unique: str, nats_url: str) -> None:
    project = Project(tmp_path, unique, 'topologies = ["triage.yaml"]', NATS_URL=nats_url)
    project.write("triage.yaml", TRIAGE.format(u=unique, signature="text -> answer"))
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        assert project.here("publish", project.input, "text=hello").code == 0
        waits = "1 call waits for pool lightweight, and no worker of it is ready"
        assert eventually(lambda: reasons(project) == [waits])
        run.end(signal.SIGKILL)
    assert reasons(project) == ["no engine is running triage", waits]


@pytest.mark.long
def test_a_source_whose_stream_is_gone_breaks_neither_status_nor_the_other_rows(project: Project, nats_url: str) -> None:
    other = NATIVE.format(u=f"{project.u}b").replace("topology: native", "topology: other")
    project.write("other.yaml", other)
    settings = f'app = "{project.u}"\ntopologies = ["native.yaml", "other.yaml"]\n'
    (project.folder / "dspex.toml").write_text(settings)
    stream = f"{project.u}-events"
    on(nats_url, lambda bus: bus.ensure_stream(StreamConfig(stream, [project.input])))
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        project.publish("text=hello")
        assert eventually(lambda: reasons(project) == [])
        on(nats_url, lambda bus: bus.remove("stream", stream))
        (reason,) = eventually(lambda: reasons(project))
        assert f"the stream {stream} of source '{project.input}' is not there" in reason
        (said,) = project.here("--json", "status").objects()
        rows = {row["topology"]: row for row in said["stages"]}
        assert (rows["native"]["lag"], rows["native"]["oldest"]) == (None, None)
        assert (rows["other"]["lag"], rows["other"]["stopped"]) == (0, None)
        assert "STOPPED: the stream" in project.here("status").out
    assert "is not there" in str(reasons(project))


@pytest.mark.long
def test_a_wiped_server_is_told_by_the_engine_by_status_and_by_doctor(project: Project, nats_url: str) -> None:
    app = project.u

    async def wipe(bus: Bus) -> None:
        for stream in (subjects.stream(app), subjects.sources(app)):
            await bus.remove("stream", stream)
        for bucket in subjects.buckets(app):
            await bus.remove("bucket", bucket)

    def doctor() -> dict[str, Any]:
        return {check["check"]: check for check in project.here("--json", "doctor").objects()}

    assert doctor()["application"]["message"] == "nothing is applied yet"
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        assert doctor()["application"]["message"] == "1 topology is applied"
        on(nats_url, wipe)
        lost = f"the stream of app {app} is gone from the server, and with it all that it held"
        assert eventually(lambda: lost in reasons(project))
        assert "an engine runs native, and the server knows no such topology" in reasons(project)
        found = doctor()["stream"]
        assert (found["ok"], found["message"]) == (False, lost)
        assert "its stream is GONE" in project.here("status").out
        log = run.errors()
        assert log.count("nothing is processed") == 1
        assert f"the stream {subjects.stream(app)} is gone from the server" in log


def test_who_only_looks_makes_nothing_on_the_server(project: Project, nats_url: str) -> None:
    async def made(bus: Bus) -> list[bool]:
        app = project.u
        return [await bus.has("bucket", subjects.bucket(app)), await bus.has("stream", subjects.stream(app))]

    for verb in (["status"], ["status", "--health"], ["doctor"], ["dlq", "ls"]):
        project.here(*verb)
    assert on(nats_url, made) == [False, False]
