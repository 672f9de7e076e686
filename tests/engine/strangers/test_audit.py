"""The audit: what changes something leaves an entry, and nobody's entry breaks the list."""

from __future__ import annotations

import asyncio
import getpass
import json
import socket

import pytest
from cli_bench import Project

from dspex.bus import nats, subjects
from dspex.bus.port import Bus, NewMessage, StreamConfig
from dspex.bus.serving import audit

# Read in full, and deeper than it can be written again.
DEEP = b'{"who":"a","what":{"a":' + b"[" * 600 + b"]" * 600 + b"}}"
ME = f"{getpass.getuser()}@{socket.gethostname()}"


def entries(project: Project, *options: str) -> list[dict[str, object]]:
    done = project.here("--json", "audit", "ls", *options)
    assert done.code == 0, done.err
    return done.objects()


def test_every_verb_that_changes_something_leaves_an_entry(native: Project) -> None:
    mine = ("--who", getpass.getuser(), "--since", "1h")
    before, of_mine = len(entries(native)), len(entries(native, *mine))
    assert native.here("publish", native.input, "text=x").code == 0  # too short: it becomes a dead letter
    assert native.here("publish", native.input, "text=hello", "--wait", "60s").code == 0
    letters = native.here("--json", "dlq", "ls").objects()
    sequence = letters[-1]["sequence"]
    assert native.here("dlq", "redrive", str(sequence)).code == 0
    assert native.here("dlq", "drop", "--all").code == 0
    assert native.here("apply", "--yes").code == 0
    assert native.here("delete", "native", "--yes").code != 0  # an engine runs it, so nothing was changed
    found = entries(native)[before:]
    assert [(e["verb"], e["who"]) for e in found][:3] == [("publish", ME), ("publish", ME), ("redrive", ME)]
    assert found[-1]["verb"] == "apply"
    assert found[0]["what"] == {"subject": native.input, "events": 1}
    assert found[2]["what"] == {"letters": [sequence], "count": 1, "changed": False}
    assert entries(native, "--who", "somebody") == []
    assert len(entries(native, *mine)) == of_mine + len(found)
    shown = native.here("audit", "ls")
    assert f"subject {native.input}, events 1" in shown.out.replace("\n", " ")


@pytest.mark.asyncio
async def test_a_run_that_applies_says_so(native: Project, nats_url: str) -> None:
    applied = [e for e in await asyncio.to_thread(entries, native) if e["verb"] == "apply"]
    assert applied[0]["what"] == {"native": "created"}


@pytest.mark.asyncio
async def test_what_publishers_and_callers_say_lies_in_a_stream_of_its_own(native: Project, nats_url: str) -> None:
    bus = await nats.connect(nats_url)
    verbs = ("publish", "call", "apply", "drop")
    streams = [await bus.stream_of(subjects.audit(native.u, verb)) for verb in verbs]
    await bus.close()
    own = subjects.stream(native.u)
    assert streams == [subjects.told(native.u), subjects.told(native.u), own, own]
    times = [str(e["time"]) for e in await asyncio.to_thread(entries, native)]
    assert times == sorted(times)


@pytest.mark.asyncio
async def test_what_others_write_there_is_shown_and_moves_no_cursor(native: Project, nats_url: str) -> None:
    bus: Bus = await nats.connect(nats_url)
    said = json.dumps({"who": "\x1b[2J", "what": {"\x1b]52": "\x1b[2J"}}).encode()
    for body in (b"", b"[", b"5", b'{"who": 5, "what": 7}', said, b"[" * 10_000, DEEP):
        await bus.publish(NewMessage(subjects.audit(native.u, "drop"), body))
    await bus.close()
    shown = await asyncio.to_thread(native.here, "audit", "ls")
    assert (shown.code, "\x1b]52" in shown.out, "\x1b[2J" in shown.out) == (0, False, False)
    assert len(await asyncio.to_thread(entries, native, "--who", "?")) == 5


def test_a_user_whose_name_is_no_text_publishes_once_and_is_told_so(native: Project) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGNAME", "\udcff\x1b[2J")
        done = native.here("--json", "publish", native.input, "text=hello")
    assert (done.code, done.err) == (0, "")
    assert entries(native)[-1]["who"] == f"?\x1b[2J@{socket.gethostname()}"


@pytest.mark.asyncio
async def test_without_an_applied_topology_a_publish_still_succeeds(tmp_path, unique: str, nats_url: str) -> None:
    bus = await nats.connect(nats_url)
    await bus.ensure_stream(StreamConfig(unique, [f"{unique}.in"]))
    await audit.leave(bus, unique, "apply", app=1, bus=2, verb=3)  # names of topologies
    await bus.close()
    project = Project(tmp_path, unique, NATS_URL=nats_url)
    done = await asyncio.to_thread(project.here, "publish", f"{unique}.in", "n=1")
    assert (done.code, done.err) == (0, "")
