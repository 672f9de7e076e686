"""`dspex dlq`, `watch` and `status` as a shell sees them, on a real server with a running engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from broken.wire_cutter import WireCutter
from cli_bench import NATIVE, Done, Project
from waiting import eventually, until

from dspex.bus import nats
from dspex.bus.errors import RunFailed
from dspex.bus.port import NewMessage
from dspex.bus.settings.model import Settings
from dspex.engine.client.client import connect
from dspex.engine.hosting.engine import Engine
from dspex.operators.topology import Topology

LETTER = ["sequence", "topology", "node", "reason", "code", "message", "fix", "attempts", "run", "time", "event"]
EVENT = ["id", "subject", "data", "time", "run", "cause", "key", "session", "headers", "sequence"]


def fail(project: Project, *texts: str) -> list[dict[str, Any]]:
    """Publish texts that are too short; the letters that come of it."""
    found = project.publish("-", stdin="".join(f'{{"text":"{t}"}}\n' for t in texts))
    assert (found.code, [r["status"] for r in found.objects()]) == (1, ["failed"] * len(texts))
    runs = {r["run"] for r in found.objects()}
    return [d for d in project.here("--json", "dlq", "ls").objects() if d["run"] in runs]


def test_a_dead_letter_is_listed_and_shown_with_its_traceback(native: Project) -> None:
    (letter,) = fail(native, "x")
    assert list(letter) == LETTER
    assert list(letter["event"]) == EVENT
    assert (letter["topology"], letter["node"], letter["reason"], letter["code"]) == (
        "native",
        "check",
        "InvalidInput",
        "DX502",
    )
    assert letter["event"]["data"] == {"text": "x"}
    sequence = str(letter["sequence"])
    (shown,) = native.here("--json", "dlq", "show", sequence).objects()
    assert list(shown) == [*LETTER, "traceback"]
    human = native.here("dlq", "show", sequence).out
    assert 'data   {"text":"x"}' in human
    assert "  fix: correct the fields" in human
    assert human.rstrip().splitlines()[-1].startswith("dspex.bus.errors.InvalidInput")
    table = native.here("dlq", "ls", "--node", "check", "--reason", "InvalidInput", "--since", "1h").out.splitlines()
    assert table[0].split() == ["seq", "time", "node", "reason", "attempts", "run", "message"]
    assert [line for line in table if line.startswith(sequence)]
    assert letter["run"] in native.here("dlq", "ls").out  # whole: a part of it finds nothing
    for nothing in (["--node", "count"], ["--node", "native/count"], ["--since", "0s"], ["--reason", "CallTimeout"]):
        found = native.here("dlq", "ls", *nothing)
        assert (found.code, found.out, found.err) == (0, "", "no dead letters\n")


def test_what_dlq_ls_prints_of_an_operator_selects_its_letters(native: Project) -> None:
    (letter,) = fail(native, "x")
    row = next(line for line in native.here("dlq", "ls").out.splitlines() if line.startswith(f"{letter['sequence']} "))
    shown = next(word for word in row.split() if "/" in word)
    assert shown == "native/check"
    assert letter in native.here("--json", "dlq", "ls", "--node", shown).objects()
    dropped = native.here("--json", "dlq", "drop", "--node", shown, str(letter["sequence"]))
    assert dropped.objects() == [{"dropped": 1}]


def test_letters_are_found_under_the_old_and_the_new_name_of_an_operator(tmp_path: Path, unique: str, nats_url: str) -> None:
    project = Project(tmp_path, unique, 'topologies = ["native.yaml"]\n', NATS_URL=nats_url)
    settings, first = Settings.load(server__url=nats_url, app=unique), NATIVE.format(u=unique)

    async def failing(topology: Topology) -> None:
        async with Engine(topology, settings=settings, pools="none"), connect(settings=settings) as client:
            with pytest.raises(RunFailed):
                await (await client.publish(project.input, {"text": "x"})).wait("60s")

    for version in (first, first.replace("check", "verify").replace("sources:", "renamed_from: { verify: check }\nsources:")):
        asyncio.run(failing(Topology.load(tmp_path / project.write("native.yaml", version))))
    letters = project.here("--json", "dlq", "ls").objects()
    assert {letter["node"] for letter in letters} == {"check", "verify"}
    for name in ("check", "verify", "native/check", "native/verify"):
        assert project.here("--json", "dlq", "ls", "--node", name).objects() == letters
    assert project.here("--json", "dlq", "drop", "--node", "native/check", "--all").objects() == [{"dropped": 2}]


@pytest.mark.parametrize(
    ("verb", "args", "code", "fix"),
    [
        ("ls", ["--node", "chekc"], "DX235", "check"),
        ("redrive", ["--node", "native/chekc"], "DX235", "native/check"),
        ("drop", ["--node", "other/check"], "DX235", "native/check"),
        ("ls", ["--topology", "nativ"], "DX235", "native"),
        ("redrive", ["--reason", "InvalidInptu"], "DX105", "InvalidInput"),
        ("drop", ["--reason", "502"], "DX105", "DX502"),
        ("redrive", ["--all", "--time", "yesterday"], "DX105", "now, or as 2026-"),
    ],
)
def test_a_name_that_nothing_has_is_an_error_and_names_what_there_is(
    native: Project, verb: str, args: list[str], code: str, fix: str
) -> None:
    error = native.here("--json", "dlq", verb, *args).error()
    assert (error["code"], fix in error["fix"]) == (code, True), error


@pytest.mark.asyncio
async def test_what_a_publisher_writes_into_a_header_reaches_no_terminal_as_a_command(native: Project, nats_url: str) -> None:
    run, bus = "run\x1b]0;title\x07\x1b[2Jx", await nats.connect(nats_url)
    await bus.publish(NewMessage(native.input, b'{"text": "x"}', {"Dspex-Run": run, "Dspex-Key": run}))
    await bus.close()

    async def letter() -> list[dict[str, Any]]:
        return [d for d in (await asyncio.to_thread(native.here, "--json", "dlq", "ls")).objects() if d["run"] == run]

    await until(letter)
    (found,) = await letter()
    for verb in ("ls", "show"):
        shown = await asyncio.to_thread(native.here, "dlq", verb, *([str(found["sequence"])] if verb == "show" else []))
        assert r"\x1b[2Jx" in shown.out
        assert "\x1b" not in shown.out


def test_a_redriven_event_keeps_its_run_and_arrives_once(native: Project) -> None:
    letter, other = fail(native, "a", "b")
    sequence = str(letter["sequence"])
    dry = native.here("--json", "dlq", "redrive", sequence, "--dry-run")
    assert [d["sequence"] for d in dry.objects()] == [letter["sequence"]]
    done = native.here("--json", "dlq", "redrive", sequence, "--set", "text=long enough", "--set", "n:=1")
    assert (done.code, done.objects()) == (0, [{"redriven": 1}]), done.err
    (event,) = native.here("--json", "watch", native.output, "--start", sequence, "--count", "1").objects()
    assert (event["run"], event["data"]) == (letter["run"], {"text": "long enough", "n": 1, "size": 11})
    again = native.here("--json", "dlq", "redrive", sequence)
    assert (again.code, again.error()["code"]) == (1, "DX623")
    assert native.here("--json", "dlq", "drop", str(other["sequence"])).objects() == [{"dropped": 1}]


@pytest.mark.long
@pytest.mark.asyncio
async def test_a_redrive_of_many_letters_that_is_killed_half_way_and_asked_for_again_runs_each_event_once(
    native: Project, nats_url: str
) -> None:
    many, bus = 100, await nats.connect(nats_url)

    async def outputs(letters: list[dict[str, Any]]) -> Counter[str]:
        """How often each run of the letters has come out."""
        runs, info = {d["run"] for d in letters}, await bus.stream(await bus.stream_of(native.output) or "")
        stored = await bus.scan(info.name, [native.output], start=1, stop=info.last) if info else []
        return Counter(run for m in stored if (run := m.headers["Dspex-Run"]) in runs)

    await asyncio.to_thread(native.here, "dlq", "drop", "--node", "check", "--all")  # those of other tests
    letters = await asyncio.to_thread(fail, native, *["x"] * many)
    repair, wire = ("dlq", "redrive", "--node", "check", "--set", "text=long enough"), WireCutter(nats_url, round_trip=0.05)
    await wire.start()  # so slow, and in this process, that it does not get to the end before it is killed
    with native.start(*repair, NATS_URL=wire.url) as redrive:

        async def some() -> bool:
            return len(await outputs(letters)) > many // 10 or redrive.process.poll() is not None

        await until(some)
        redrive.process.kill()
        redrive.process.wait()
    await wire.stop()
    left = await asyncio.to_thread(native.here, "--json", "dlq", "ls", "--node", "check")
    assert 0 < len(left.objects()) < many
    again = await asyncio.to_thread(native.here, "--json", *repair)
    assert (again.code, again.objects()) == (0, [{"redriven": len(left.objects())}]), again.err

    async def all_of_them() -> bool:
        return len(await outputs(letters)) == many

    await until(all_of_them)
    assert set((await outputs(letters)).values()) == {1}
    assert (await asyncio.to_thread(native.here, "--json", "dlq", "ls", "--node", "check")).objects() == []
    await bus.close()


def test_an_editor_changes_the_data(native: Project, tmp_path: Path) -> None:
    (letter,) = fail(native, "c")
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i \'s/"c"/"changed"/\' $1\n')
    editor.chmod(0o755)
    sequence = str(letter["sequence"])
    failed = native.here("dlq", "redrive", sequence, "--edit", EDITOR="false")
    assert (failed.code, "nothing was redriven" in failed.err) == (2, True)
    broken = native.here("dlq", "redrive", sequence, "--edit", EDITOR="sh -c 'echo nonsense > $0'")
    assert (broken.code, "not JSON" in broken.err) == (2, True)
    assert native.here("dlq", "redrive", sequence, "--edit", VISUAL=str(editor)).code == 0
    (event,) = native.here("--json", "watch", native.output, "--start", sequence, "--count", "1").objects()
    assert event["data"] == {"text": "changed", "size": 7}


@pytest.mark.parametrize("verb", ["redrive", "drop"])
def test_all_letters_are_taken_only_when_all_are_asked_for(native: Project, verb: str) -> None:
    refused = native.here("dlq", verb)
    assert refused.code == 2
    assert f"error[DX136] dlq {verb} without a selection would take every dead letter\n  fix: " in refused.err


def test_watch_filters_events_by_a_test_and_shows_the_fields_asked_for(native: Project) -> None:
    runs = native.publish("-", stdin='{"text":"uno","n":1}\n{"text":"two"}\n{"text":"three","n":3}\n').objects()
    where = ("--where", "text == 'uno'")  # no other test publishes it
    (one,) = native.here("watch", native.output, "--start", "all", "--json", *where, "--count", "1").objects()
    first = str(one["sequence"])

    def watch(*args: str) -> Done:
        return native.here("watch", native.output, "--start", first, *args)

    every = watch("--json", "--count", "3").objects()
    assert list(every[0]) == EVENT
    assert [e["run"] for e in every] == [r["run"] for r in runs]
    some = watch("--json", "--where", "n > 1 and event.subject != ''", "--count", "1", "--fields", "n,size,none")
    assert [e["data"] for e in some.objects()] == [{"n": 3, "size": 5}]
    assert "--where cannot be evaluated" in some.err
    assert watch("--count", "1").out.rstrip().endswith('{"text":"uno","n":1,"size":3}')
    wrong = watch("--where", "n >", "--json")
    assert (wrong.code, wrong.error()["code"]) == (3, "DX208")
    assert native.here("watch", native.output, "--start", "soon").code == 2
    node = native.here("--json", "watch", "native/check")
    assert (node.code, node.error()["code"]) == (3, "DX235")


def test_an_interrupt_ends_a_watch_without_an_error(native: Project) -> None:
    with native.start("--json", "watch", native.output) as watch:
        with native.start("--json", "status", "--watch") as status:
            status.until('"stages"')
            assert status.end(signal.SIGINT) == 0, status.errors()
        while not watch.lines:  # it may not have begun yet
            native.publish("text=seen")
        assert json.loads(watch.lines[0])["data"]["text"] == "seen"
        assert watch.end(signal.SIGINT) == 0
        assert watch.errors() == ""


def test_status_shows_which_engine_runs_what_and_forgets_dead_engines(native: Project, nats_url: str) -> None:
    native.publish("text=hello")

    def read() -> Any:  # engines say how far they are every second, and no output tells when
        (said,) = native.here("--json", "status").objects()
        (stage,) = said["stages"]
        return stage["lag"] == stage["unowned"] == 0 and said

    found = eventually(read)
    assert list(found) == ["server", "engines", "stages", "pools", "lms", "routes", "operators", "letters", "limits"]
    (engine,), (stage,) = found["engines"], found["stages"]
    assert (engine["alive"], engine["topologies"], engine["host"]) == (True, ["native"], socket.gethostname())
    assert list(stage) == [
        *(
            "topology",
            "stage",
            "source",
            "stream",
            "lag",
            "oldest",
            "open_calls",
            "calls",
            "put_off",
            "approvals",
            "full",
            "gate",
            "holds",
            "owners",
        ),
        *("partitions", "unowned", "events", "retries", "fallbacks", "unsigned", "left_out", "dead_letters", "stopped"),
        *("rests_until", "paused", "paused_until", "admits", "dropped", "rate"),
    ]
    assert (stage["topology"], stage["source"], stage["lag"], stage["unowned"]) == ("native", native.input, 0, 0)
    assert stage["owners"] == [engine["engine"]]
    assert [(p["pool"], p["ready"]) for p in found["pools"]] == [("lightweight", 0)]
    text = native.here("status").out
    assert f"native/s1  {native.input}  0" in text
    assert "not running" in text


def test_a_killed_engine_is_not_shown_as_alive_and_what_waits_is(tmp_path: Path, unique: str, nats_url: str) -> None:
    project = Project(tmp_path, unique, 'topologies = ["native.yaml"]', NATS_URL=nats_url)
    project.write("native.yaml", NATIVE.format(u=unique))
    with project.start("run", "--pools", "none") as run:
        run.until("ready")
        project.publish("text=hello")
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
    receipt = project.here("--json", "publish", project.input, "text=waits")
    assert receipt.code == 0
    (found,) = project.here("--json", "status").objects()
    assert (found["engines"], found["stages"][0]["owners"]) == ([], [])
    assert found["stages"][0]["lag"] > 0
    limited = project.here("--json", "publish", project.input, "text=waits", "--wait", "200ms")
    assert (limited.code, limited.error()["code"]) == (5, "DX603")
    assert "no engine is running" in limited.err


@pytest.mark.long
def test_a_closed_pipe_behind_a_watch_ends_it(native: Project) -> None:
    native.publish("-", stdin='{"text":"one"}\n{"text":"two"}\n')
    command = " ".join(native._command(("watch", native.output, "--start", "all", "--count", "2"))) + " | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=native.folder, env=native.env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
