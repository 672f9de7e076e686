"""`dspex doctor` and the way to a server that asks who you are."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from broken.wrong_clock import machine

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, NotAllowed
from dspex.bus.local.open import local_server, open_bus, tls_context
from dspex.bus.local.server import LocalServer
from dspex.bus.port import StreamConfig
from dspex.bus.settings.model import Settings
from dspex.bus.settings.server import TLSSettings
from dspex.engine.cli.server.doctor import Diagnosis, checks
from dspex.engine.hosting.apply import apply
from dspex.operators.topology import Topology


@pytest.fixture
def folder(tmp_path: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[LocalServer]:
    """A server with a login, as somebody else would run it: outside of the folder's .dspex."""
    async with LocalServer(tmp_path / "theirs" / "js", port=None, user="ann", password="s3cret") as s:
        yield s


async def found(settings: Settings) -> dict[str, Diagnosis]:
    return {check.name: check for check in await checks(settings)}


@pytest.mark.asyncio
async def test_a_server_of_somebody_else_is_checked_with_the_login(
    folder: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", server.url.replace("//", "//ann:s3cret@"))
    settings = Settings.load(app="shop")
    before = await found(settings)
    assert all(check.ok for name, check in before.items() if not name.startswith("lm."))  # no model need be installed
    assert before["clock"].message == "not visible before the first topology is applied"
    async with open_bus(settings, name="test") as bus:
        assert bus.url == server.url
        await bus.ensure_stream(StreamConfig(subjects.stream("shop"), ["x"]))
    after = await found(settings)
    assert after["clock"].ok
    assert "s from ours" in after["clock"].message
    assert after["jetstream"].message.startswith("on; 1 streams")
    assert "s3cret" not in str([*before.values(), *after.values()])


@pytest.mark.asyncio
async def test_a_server_of_our_own_is_checked_with_what_the_settings_say_of_it(folder: Path) -> None:
    async with local_server(Settings.load(), -1):
        checked = await found(Settings.load())
    assert [checked[name].ok for name in ("server", "jetstream", "max_payload", "consumers")] == [True] * 4
    assert "is a server of dspex, nats-server 2." in checked["server"].message
    assert checked["clock"].message == "the server runs on this machine"
    assert checked["sync_interval"].message.startswith("120 s: a crash of the operating system")
    assert "nats-server" not in checked  # none need be started


@pytest.mark.asyncio
async def test_what_settings_name_that_is_not_there_is_a_fault_topologies_once_something_is_applied(folder: Path) -> None:
    (folder / "dspex.toml").write_text(
        'app = "shop"\npath = ["nosuchfolder"]\npools.lightweight.programs = ["nosuch:*"]\nhttp.calls.ask = "nosuch/ask"\n'
        'budgets.a = { topology = "nosuch", requests = 1, per = "day" }\n'
    )
    settings = Settings.load()
    here, there = {"path", "pools.lightweight.programs"}, {"budgets.a.topology", "http.calls.ask"}
    async with local_server(settings, -1):
        before = await found(settings)
        assert {name for name, check in before.items() if name in here | there and not check.ok} == here
        topology = Topology("t")
        topology.source("t.in").sink("t.out")
        async with open_bus(settings, name="test") as bus:
            await apply(bus, "shop", [topology.graph])
        after = await found(settings)
    assert {name for name, check in after.items() if name in here | there and not check.ok and check.fix} == here | there


@pytest.mark.asyncio
async def test_a_wrong_password_is_a_fault_with_a_fix(
    folder: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_PASSWORD", "wrong")
    settings = Settings.load(server={"url": server.url, "user": "ann", "password_env": "A_PASSWORD"})
    with pytest.raises(NotAllowed):
        async with open_bus(settings, name="test"):
            pass
    check = (await found(settings))["server"]
    assert not check.ok
    assert "password" in str(check.fix)


@pytest.mark.asyncio
async def test_a_server_that_is_not_there_is_a_fault(folder: Path) -> None:
    both = await found(Settings.load(server__url="nats://127.0.0.1:1"))
    assert not both["server"].ok
    assert "127.0.0.1:1" in both["server"].message
    assert {"lm.local", "pools.lightweight"} <= set(both)


@pytest.mark.asyncio
async def test_the_interpreter_that_runs_doctor_says_what_it_would_say_were_it_started(folder: Path) -> None:
    pools = {"mine": {}, "named": {"python": str(Path(sys.executable).parent / "python3")}}
    checked = await found(Settings.load(pools=pools, server__local__port=-1))
    assert checked["pools.mine"].message == checked["pools.named"].message


@pytest.mark.asyncio
async def test_an_interpreter_without_dspy_is_a_fault_of_a_pool_with_programs(folder: Path) -> None:
    bare = folder / "python"
    bare.write_text('#!/bin/sh\necho \'{"python": "3.11.0", "dspy": null, "dspex": "0.1.0"}\'\n')
    broken = folder / "broken"
    broken.write_text("#!/bin/sh\necho no such library >&2; exit 1\n")
    bare.chmod(0o755)
    broken.chmod(0o755)
    pools = {
        "bare": {"python": str(bare), "programs": ["p:*"]},
        "native": {"python": str(bare)},
        "broken": {"python": str(broken)},
    }
    checked = await found(Settings.load(pools=pools, server__local__port=-1))
    assert (checked["pools.bare"].ok, "dspy missing" in checked["pools.bare"].message) == (False, True)
    assert (checked["pools.native"].ok, "dspy missing" in checked["pools.native"].message) == (True, True)
    assert (checked["pools.broken"].ok, "no such library" in checked["pools.broken"].message) == (False, True)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("version", "ok", "said"),
    [
        ("2.5.43", False, "DSPy 2.5.43 is too old: the oldest that works is 2.6"),
        ("2.6.27", True, ""),
        ("3.4.1", True, ""),
        ("3.9.0", True, "DSPy 3.9.0 is newer than all that dspex is tested with, up to 3.4"),
    ],
)
async def test_a_version_of_dspy_that_is_not_tested_is_named(folder: Path, version: str, ok: bool, said: str) -> None:
    python = folder / "python"
    python.write_text(f'#!/bin/sh\necho \'{{"python": "3.11.0", "dspy": "{version}", "dspex": "0.1.0"}}\'\n')
    python.chmod(0o755)
    checked = await found(Settings.load(pools={"old": {"python": str(python)}}, server__local__port=-1))
    assert checked["pools.old"].ok == ok
    assert f"dspy {version}" in checked["pools.old"].message
    assert said in checked["pools.old"].message


def test_certificates_that_cannot_be_used_are_a_settings_error(folder: Path) -> None:
    (folder / "ca.pem").write_text("no certificate")
    for tls in (TLSSettings(ca="none.pem"), TLSSettings(ca="ca.pem"), TLSSettings(cert="none.pem", key="none.pem")):
        with pytest.raises(ConfigError, match="certificates") as caught:
            tls_context(tls)
        assert caught.value.code == "DX122"


@pytest.mark.asyncio
async def test_a_machine_whose_clock_is_far_from_the_servers_is_told_so(folder: Path, nats_url: str, unique: str) -> None:
    async with open_bus(Settings.load(server__url=nats_url), name="test") as bus:
        await bus.ensure_stream(StreamConfig(subjects.stream(unique), [f"{unique}.x"]))
    command = ("-m", "dspex", "--json", "--server", nats_url, "doctor")
    env = {**machine(folder, -60), "DSPEX_APP": unique}
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=PIPE, cwd=folder, env=env)
    said = (await process.communicate())[0].decode()
    assert process.returncode == 1
    (clock,) = [row for line in said.splitlines() if (row := json.loads(line)).get("check") == "clock"]
    assert not clock["ok"]
    assert re.search(r"the server's clock is \+(60|59\.9)", clock["message"])
    assert "NTP" in clock["fix"]


@pytest.mark.asyncio
async def test_whether_payloads_are_sealed_and_can_be_opened_is_said(
    nats_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def seen(named: str | None) -> Diagnosis:
        s = Settings.load(server__url=nats_url, app=unique, engine__encrypt_key_env=named)
        return {check.name: check for check in await checks(s)}["payloads"]

    monkeypatch.setenv("SEAL", "k" * 64)
    monkeypatch.setenv("OTHER", "o" * 64)
    topology = Topology("t")
    topology.source(f"{unique}.in").sink(f"{unique}.out")
    assert ((await seen(None)).ok, "in clear text" in (await seen(None)).message) == (True, True)
    assert (await seen("SEAL")).ok  # nothing is applied yet
    settings = Settings.load(server__url=nats_url, app=unique, engine__encrypt_key_env="SEAL")
    async with open_bus(settings, name="test") as bus:
        await apply(bus, unique, [topology.graph])
        assert await seen("SEAL") == Diagnosis("payloads", True, "sealed, with the key in SEAL")
        assert not (await seen(None)).ok
        assert not (await seen("OTHER")).ok
        await bus.remove("stream", subjects.keys(unique))
    gone = await seen("SEAL")
    assert (gone.ok, gone.fix is not None and "apply again" in gone.fix) == (False, True)


@pytest.mark.asyncio
async def test_a_public_copy_that_is_gone_or_copies_no_more_is_a_fault(nats_url: str, unique: str) -> None:
    settings, name = Settings.load(server__url=nats_url, app=unique), f"{unique}_public"
    topology = Topology("t")
    topology.source(f"{unique}.in").sink(f"{unique}.out", stream=name)
    async with open_bus(settings, name="test") as bus:
        await apply(bus, unique, [topology.graph])
        assert "copy" not in await found(settings)
        await bus.remove("stream", name)
        gone = (await found(settings))["copy"]
        await bus.ensure_stream(StreamConfig(name, [f"{unique}.other"]))
        other = (await found(settings))["copy"]
    assert (gone.ok, f"{name}, the copy of sink {unique}.out, is gone" in gone.message) == (False, True)
    assert (other.ok, f"{name} has no copy of sink {unique}.out any more" in other.message) == (False, True)
