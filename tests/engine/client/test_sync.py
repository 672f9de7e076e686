"""`dspex.sync`: the client without `await` is generated from the client, and works on a background loop."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import dspex
from dspex.bus.errors import NotStored
from dspex.bus.memory.server import MemoryServer
from dspex.bus.port import StreamConfig
from dspex.engine.client import background
from dspex.engine.client import client as client_module
from dspex.engine.client.sync_client import Client, Run

SCRIPT = Path(dspex.__file__).parent / "scripts/make_sync.py"


async def connected() -> client_module.Client:
    bus = MemoryServer().connect()
    await bus.ensure_stream(StreamConfig("DSPEX_app", ["in"], 1))
    return client_module.Client(bus=bus, app="app")


def test_the_generated_client_is_current() -> None:
    script = runpy.run_path(str(SCRIPT))
    assert script["PAGE"].read_text() == script["generated"](), "run: python scripts/make_sync.py"


def test_a_script_publishes_and_watches_without_await() -> None:
    with Client(background.run(connected())) as client:
        run = client.publish("in", {"n": 1}, id="order-1")
        assert isinstance(run, Run)
        assert (run.subject, run.stream, run.sequence, run.duplicate) == ("in", "DSPEX_app", 1, False)
        assert client.publish("in", {"n": 2}, id="order-1").duplicate
        events = client.watch("in", start="all")
        assert next(events).data == {"n": 1}
        events.close()  # type: ignore[attr-defined]
        assert repr(client.run(run.id)) == f"Run('{run.id}')"
        with pytest.raises(NotStored):
            client.publish("out", {})
