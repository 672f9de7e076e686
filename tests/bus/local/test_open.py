"""Which server is used, and who keeps it running, on real servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from waiting import until

from dspex.bus.errors import ConfigError, NotAllowed, Unreachable
from dspex.bus.local.open import connect, server_of
from dspex.bus.local.server import LocalServer
from dspex.bus.local.state import running, stop_running
from dspex.bus.port import StreamConfig
from dspex.bus.settings.model import Settings
from dspex.bus.settings.server import LocalServerSettings, ServerSettings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    local = ServerSettings(local=LocalServerSettings(port=-1))
    return Settings(app="test", server=local).placed(tmp_path, {})


@pytest.mark.asyncio
async def test_without_a_server_the_error_says_how_to_start_one(settings: Settings) -> None:
    with pytest.raises(Unreachable) as caught:
        async with server_of(settings):
            pass
    assert "dspex run" in caught.value.fix


@pytest.mark.asyncio
async def test_a_process_that_still_needs_a_server_takes_it_over_from_the_one_that_started_it(settings: Settings) -> None:
    home = settings.store.parent
    first = server_of(settings, start=True)
    started = await first.__aenter__()
    async with server_of(settings, start=True) as second:
        assert (started.started, second.started, second.url) == (True, False, started.url)
        bus = await connect(settings, second, name="test")
        await bus.ensure_stream(StreamConfig("KEPT", ["kept"]))
        before = running(home)
        await first.__aexit__(None, None, None)
        await until(lambda: running(home) and bus.connected)
        now = running(home)
        assert before is not None
        assert now is not None
        assert (now["url"], now["pid"] != before["pid"]) == (started.url, True)
        assert await bus.stream("KEPT") is not None
        await bus.close()
    assert running(home) is None


@pytest.mark.asyncio
async def test_a_detached_server_is_neither_stopped_nor_started_again_by_those_who_use_it(settings: Settings) -> None:
    """`dspex server start`: it outlives who uses it, and `dspex server stop` is not undone."""
    server = LocalServer(settings.store, port=None, detached=True)
    await server.start()
    async with server_of(settings, start=True) as found:
        assert not found.started
    assert running(settings.store.parent) is not None
    async with server_of(settings, start=True):
        state = running(settings.store.parent)
        assert state is not None
        assert state["detached"], "who uses it does not keep it running"
        assert await stop_running(settings.store.parent)
    assert running(settings.store.parent) is None
    await server.stop()  # nothing is left of it but a child to be waited for


@pytest.mark.asyncio
async def test_who_names_the_address_of_the_folders_own_server_is_told_to_leave_it_out(settings: Settings) -> None:
    async with server_of(settings, start=True) as own:
        named = settings.model_copy(update={"server": ServerSettings(url=own.url)})
        async with server_of(named) as found:
            with pytest.raises(NotAllowed) as caught:
                await connect(named, found, name="test")
    assert "leave the address out" in caught.value.fix


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "login", [{"creds": "me.creds"}, {"user": "ann"}, {"token_env": "T"}, {"tls": {"ca": "ca.pem"}}], ids=str
)
async def test_a_login_without_a_server_that_it_is_for_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    for settings in (Settings.load(server=login), Settings(server=ServerSettings.model_validate(login))):
        with pytest.raises(ConfigError, match=f"server.{next(iter(login))}") as caught:
            async with server_of(settings, start=True):
                pass
        assert caught.value.code == "DX108"


@pytest.mark.asyncio
async def test_a_login_of_the_shell_for_all_nats_tools_does_not_keep_the_local_server_from_being_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATS_CREDS", "me.creds")
    monkeypatch.setenv("NATS_PASSWORD", "secret")
    async with server_of(Settings.load(server__local__port=-1), start=True) as found:
        assert found.local
    monkeypatch.setenv("DSPEX_SERVER__CREDS", "me.creds")
    with pytest.raises(ConfigError, match="env DSPEX_SERVER__CREDS"):
        async with server_of(Settings.load(), start=True):
            pass
