"""A nats-server that a test may kill, freeze and start again on the same store and port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from real_nats import bus, js  # noqa: F401 - fixtures

from dspex.bus.nats import NatsBus, connect

CONFIG = """
listen: "127.0.0.1:{port}"
{jetstream}
feature_flags {{ js_ack_fc_v2: false }}
"""


class Server:
    """One nats-server. `more` is added to its configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, -1
        self.jetstream = f'jetstream {{ store_dir: "{folder / "js"}" }}'
        self.more = ""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> Server:
        config, log = self.folder / "nats.conf", self.folder / "log"
        config.write_text(CONFIG.format(port=self.port, jetstream=self.jetstream) + self.more)
        log.write_bytes(b"")
        with log.open("wb") as out:
            binary = Path(sys.executable).parent / "nats-server"
            self.process = subprocess.Popen([binary, "-c", config], stderr=out)
        with log.open() as lines:
            text = ""
            while "Server is ready" not in text:
                assert self.process.poll() is None, text
                text += lines.readline()
        if found := re.search(r"client connections on \S+:(\d+)", text):
            self.port = int(found[1])
        return self

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)
        assert self.process is not None
        os.waitpid(self.process.pid, os.WUNTRACED)  # until it has really stopped

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, not yet started."""
    own = Server(tmp_path)
    yield own
    if own.process is not None:
        own.kill()


Open = Callable[..., Awaitable[NatsBus]]


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Open]:
    """`connect`, with the connections closed at the end."""
    buses: list[NatsBus] = []

    async def open_one(url: str, **options: object) -> NatsBus:
        buses.append(await connect(url, **options))  # type: ignore[arg-type]
        return buses[-1]

    yield open_one
    for one in buses:
        await one.close()
