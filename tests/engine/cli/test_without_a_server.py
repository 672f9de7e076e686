"""Where no server is named and none is running: verbs that look say so, and only those that need a server start one."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
from cli_bench import Project


@pytest.fixture
def project(tmp_path: Path, unique: str) -> Project:
    """A project in whose folder no server runs."""
    return Project(tmp_path, unique, "server.local = { port = -1 }")


@pytest.mark.parametrize(
    "args",
    [
        ["status"],
        ["status", "--watch"],
        ["watch", "a.b"],
        ["call", "text -> lang", "text=hi"],
        ["dlq", "ls"],
        ["dlq", "show", "1"],
        ["dlq", "redrive", "1"],
        ["dlq", "drop", "--all"],
        ["worker", "lightweight"],
    ],
    ids=" ".join,
)
def test_a_verb_that_looks_starts_no_server_and_says_how_to_start_one(project: Project, args: list[str]) -> None:
    found = project.here("--json", *args)
    error = found.error()
    assert (found.code, error["code"], found.out) == (4, "DX401", "")
    assert error["message"].startswith("no NATS server: none is named, and none is running in ")
    assert error["fix"] == "start one (dspex server start, or dspex run), or name one: --server nats://host:4222"
    assert not (project.folder / ".dspex").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has subreapers")
def test_a_worker_that_finds_no_server_does_not_claim_other_children_of_its_process(project: Project) -> None:
    assert project.here("worker", "lightweight").code == 4
    claims = ctypes.c_int()
    ctypes.CDLL(None).prctl(37, ctypes.byref(claims))  # PR_GET_CHILD_SUBREAPER
    assert not claims.value, "it would kill what others here have started, as the remains of its workers"


def test_the_doctor_reports_the_missing_server_and_what_can_be_checked_without_one(project: Project) -> None:
    found = project.here("--json", "doctor")
    checks = {check["check"]: check for check in found.objects()}
    assert found.code == 1
    assert (checks["server"]["ok"], "dspex server start" in checks["server"]["fix"]) == (False, True)
    assert checks["nats-server"]["message"].startswith("dspex run starts ")
    assert checks["settings"]["message"].startswith("from dspex.toml; app ")
    assert {"sync_interval", "lm.local", "pools.lightweight"} <= set(checks)
    assert not (project.folder / ".dspex").exists()


def test_where_a_local_server_is_and_whether_one_runs_is_answered_without_starting_one(project: Project) -> None:
    status, stop = project.here("--json", "server", "status"), project.here("--json", "server", "stop")
    assert (status.code, status.objects()) == (1, [{"running": False, "url": None, "pid": None}])
    assert (stop.code, stop.objects()) == (0, [{"stopped": False}])
    assert not (project.folder / ".dspex").exists()


def test_publishing_starts_a_server_for_as_long_as_it_takes_and_says_so(project: Project) -> None:
    lost = project.here("--json", "publish", "a.b", "x=y")
    assert (lost.code, lost.error()["code"]) == (4, "DX404")  # no topology is applied, so nothing stores the subject
    assert "no server was running: started one at nats://127.0.0.1:" in lost.err
    assert not list(project.folder.glob(".dspex/server.json"))
