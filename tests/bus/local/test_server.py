"""The embedded server: ready when it says so, never left behind, one a store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import until

from dspex.bus.errors import BusError, ConfigError, Unreachable
from dspex.bus.local import probe, state
from dspex.bus.local.open import server_of
from dspex.bus.local.server import LocalServer
from dspex.bus.settings.model import Settings

PARENT = """
import asyncio, pathlib, sys
from dspex.bus.local import launch
from dspex.bus.local.server import LocalServer
launch._SUPERVISOR = launch._SUPERVISOR.replace("-lt 50", "-lt 5")  # 0.5 s, not 5, from SIGTERM to SIGKILL
async def main():
    async with LocalServer(pathlib.Path(sys.argv[1]), port=None) as s:
        print(s.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / ".dspex" / "jetstream"


async def gone(pid: int) -> None:
    """Returns when the process is gone."""
    await asyncio.to_thread(psutil.wait_procs, [psutil.Process(pid)] if psutil.pid_exists(pid) else [], 30)
    assert not psutil.pid_exists(pid)


@pytest.mark.asyncio
async def test_jetstream_answers_as_soon_as_start_returns(store: Path) -> None:
    async with LocalServer(store, port=None) as s:
        answer = await probe.ask("127.0.0.1", int(s.url.rpartition(":")[2]), timeout=30)
        assert answer.jetstream is not None
        assert s.version.startswith("2.")
        assert LocalServer.find(store.parent.parent) == s.url
        pid = s.pid
    assert not psutil.pid_exists(pid)
    assert LocalServer.find(store.parent.parent) is None


@pytest.mark.asyncio
async def test_a_killed_server_comes_back_on_the_same_port_and_store(store: Path) -> None:
    async with LocalServer(store, port=None) as s:
        url, pid = s.url, s.pid
        await s.kill()
        assert not psutil.pid_exists(pid)
        assert LocalServer.find(store.parent.parent) is None
        await s.start()
        assert s.url == url
        assert s.pid != pid
        assert LocalServer.find(store.parent.parent) == url


@pytest.mark.asyncio
async def test_no_server_is_left_when_its_parent_is_sigkilled(store: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(store)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.Process(pid).name().startswith("nats-server")
    family = [pid, psutil.Process(pid).ppid()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for one in family:
        await gone(one)
    assert LocalServer.find(store.parent.parent) is None


@pytest.mark.asyncio
async def test_no_frozen_server_is_left_when_its_parent_is_sigkilled(store: Path) -> None:
    """It does not hear a SIGTERM, so it gets a SIGKILL."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(store)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    await gone(pid)


@pytest.mark.asyncio
async def test_a_server_that_lost_its_supervisor_is_stopped_and_started_all_the_same(store: Path) -> None:
    async with LocalServer(store, port=None) as s:
        pid, url = s.pid, s.url
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
        await asyncio.wait_for(s.died(), 30)
        await s.start()
        assert (s.url, s.pid != pid) == (url, True)
        await gone(pid)


@pytest.mark.asyncio
async def test_an_interrupt_at_the_terminal_does_not_reach_the_server(store: Path) -> None:
    async with LocalServer(store, port=None) as s:
        assert os.getsid(s.pid) != os.getsid(0)
        assert os.getpgid(s.pid) != os.getpgid(0)


@pytest.mark.asyncio
async def test_a_server_whose_port_is_taken_uses_another(store: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with LocalServer(store, port=port) as s:
            assert not s.url.endswith(f":{port}")


@pytest.mark.asyncio
async def test_a_second_server_on_the_same_store_is_refused(store: Path) -> None:
    async with LocalServer(store, port=None) as s:
        with pytest.raises(ConfigError, match="another nats-server") as caught:
            await LocalServer(store, port=None).start()
        assert caught.value.code == "DX115"
        assert LocalServer.find(store.parent.parent) == s.url


@pytest.mark.asyncio
async def test_a_server_that_does_not_start_says_why(store: Path) -> None:
    with pytest.raises(BusError, match="Parse error") as caught:
        await LocalServer(store, port=None, extra_config="nonsense {").start()
    assert caught.value.code == "DX413"
    async with LocalServer(store, port=None):  # and the store is free again
        pass


@pytest.mark.asyncio
async def test_a_server_with_a_password_refuses_clients_without_it(store: Path) -> None:
    async with LocalServer(store, port=None, user="ann", password='s3"cret') as s:
        with pytest.raises(ValueError, match="Authorization"):
            await probe.ask("127.0.0.1", int(s.url.rpartition(":")[2]), timeout=30)


@pytest.mark.asyncio
async def test_the_state_file_of_a_dead_server_is_ignored(tmp_path: Path) -> None:
    home = tmp_path / ".dspex"
    home.mkdir()
    for text in ("", "{}", json.dumps({"url": "nats://x:1", "pid": os.getpid(), "store": str(home / "jetstream")})):
        (home / "server.json").write_text(text)
        assert LocalServer.find(tmp_path) is None
    (home / "jetstream.lock").write_text("")
    assert LocalServer.find(tmp_path) is None


@pytest.mark.asyncio
async def test_a_detached_server_outlives_its_starter_until_it_is_stopped(store: Path) -> None:
    code = "import asyncio, sys; from dspex.bus.local.server import LocalServer as S\n"
    code += "s = S(sys.argv[1], port=None, detached=True); asyncio.run(s.start()); print(s.pid)"
    pid = int(subprocess.check_output([sys.executable, "-c", code, str(store)]))
    assert LocalServer.find(store.parent.parent) is not None
    assert await state.stop_running(store.parent)
    assert not await state.stop_running(store.parent)
    await gone(pid)


@pytest.mark.asyncio
async def test_settings_lead_to_the_named_then_the_running_then_a_new_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NATS_URL", raising=False)
    settings = Settings.load(server__local__port=-1)
    with pytest.raises(Unreachable, match="none is running") as caught:
        async with server_of(settings):
            pass
    assert "dspex server start" in caught.value.fix
    async with server_of(settings, start=True) as mine:
        assert (mine.started, mine.local) == (True, True)
        async with server_of(settings, start=True) as again:
            assert (again.url, again.started) == (mine.url, False)
        at = state.running(settings.store.parent)
        assert at is not None
        os.kill(int(at["pid"]), signal.SIGKILL)
        await until(lambda: (new := state.running(settings.store.parent)) is not None and new["pid"] != at["pid"])
        new = state.running(settings.store.parent)
        assert new is not None
        assert new["url"] == mine.url  # it was started again, where everybody looks for it
        async with server_of(Settings.load(server__url="nats://far:1")) as far:
            assert (far.url, far.local) == ("nats://far:1", False)
    assert LocalServer.find(tmp_path) is None
