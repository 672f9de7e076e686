"""The login of the local server: who else works on the machine cannot use it."""

from __future__ import annotations

import asyncio
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspex.bus.errors import ConfigError, NotAllowed
from dspex.bus.local import launch, login
from dspex.bus.local.open import connect, local_server, open_bus, server_of
from dspex.bus.local.state import stop_running
from dspex.bus.nats import connect as connect_as
from dspex.bus.settings.model import Settings
from dspex.bus.settings.server import LocalServerSettings, ServerSettings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    local = ServerSettings(local=LocalServerSettings(port=-1))
    return Settings(app="test", server=local).placed(tmp_path / "deep" / "project", {})


def _mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.mark.asyncio
async def test_the_local_server_lets_nobody_in_who_cannot_read_its_password(settings: Settings) -> None:
    home = settings.store.parent
    async with server_of(settings, start=True) as found:
        for wrong in ({}, {"user": "dspex"}, {"user": "dspex", "password": "guess"}, {"token": "guess"}):
            with pytest.raises(NotAllowed):
                await connect_as(found.url, **wrong)
        assert login.read(home) not in found.url
        async with open_bus(settings, name="another process") as bus:
            assert bus.connected
        assert _mode(home) == 0o700
        for file in home.iterdir():
            assert _mode(file) & 0o077 == 0, file


@pytest.mark.asyncio
async def test_the_password_stays_when_the_server_starts_again(settings: Settings) -> None:
    passwords = set[str]()
    for _ in range(2):
        async with server_of(settings, start=True) as found:
            bus = await connect(settings, found, name="test")
            await bus.close()
            passwords.add(login.read(settings.store.parent))
    (password,) = passwords
    assert len(password) > 30


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
async def test_a_password_that_others_could_read_or_write_is_refused(settings: Settings, mode: int) -> None:
    async with local_server(settings, -1):
        login.file_of(settings.store.parent).chmod(mode)
        with pytest.raises(ConfigError, match="others") as caught:
            async with open_bus(settings, name="test"):
                pass
        assert (caught.value.code, "rm " in str(caught.value.fix)) == ("DX123", True)
    with pytest.raises(ConfigError, match="others"):
        local_server(settings, -1)


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702, "of another"])
async def test_a_folder_that_others_can_write_to_is_not_used(
    settings: Settings, mode: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would have put a server, a configuration or a link to another file of ours there."""
    home = settings.store.parent

    def spoil() -> None:
        if isinstance(mode, int):
            home.chmod(mode)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)

    async with local_server(settings, -1):
        spoil()
        for start in (False, True):
            with pytest.raises(ConfigError, match="others can write to the folder") as caught:
                async with server_of(settings, start=start):
                    pass
            assert caught.value.code == "DX123"
        with pytest.raises(ConfigError, match="others can write to the folder"):
            await stop_running(home)
    with pytest.raises(ConfigError, match="others can write to the folder"):
        local_server(settings, -1)


@pytest.mark.asyncio
async def test_who_was_first_to_listen_on_the_port_is_not_told_the_password(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = list[bytes]()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"version":"2.15.1"}\r\n')
        heard.append(await reader.read(1000))
        writer.close()

    stranger = await asyncio.start_server(listen, "127.0.0.1", 0)
    taken, free_port = stranger.sockets[0].getsockname()[1], launch.free_port
    ports = iter([taken])
    monkeypatch.setattr(launch, "free_port", lambda wanted: next(ports, None) or free_port(None))
    async with local_server(settings, -1) as server:
        assert not server.url.endswith(f":{taken}")
    stranger.close()
    assert heard == []


def test_processes_that_begin_at_once_agree_on_one_password(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: login.make(tmp_path / "home"), range(32)))) == 1
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["password"]


@pytest.mark.asyncio
async def test_a_server_is_started_without_the_keys_of_who_starts_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    for detached in (False, True):
        async with local_server(settings, -1, detached=detached) as server:
            told = Path(f"/proc/{server.pid}/environ").read_bytes() if os.path.exists("/proc/self") else b""
            assert b"sk-secret" not in told
