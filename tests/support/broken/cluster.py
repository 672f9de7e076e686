"""A cluster of three real nats-servers on loopback, of which the first can be cut off from the others."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

from broken.wire_cutter import WireCutter

NAMES = ("first", "second", "third")
CONFIG = """
server_name: {name}
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: {store} }}
cluster {{ name: tests, listen: "127.0.0.1:{inside}", advertise: {advertise}, pool_size: -1, routes: {routes} }}
feature_flags {{ js_ack_fc_v2: false }}
"""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class Cluster:
    """Use it in a block; `urls` are those of the three nodes. All that connects the first with the others goes by wires."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = [_free_port() for _ in NAMES]
        self._inside = [_free_port() for _ in NAMES]
        self._wires = [WireCutter(f"nats://127.0.0.1:{port}") for port in self._inside]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def urls(self) -> list[str]:
        return [f"nats://127.0.0.1:{port}" for port in self._ports]

    async def __aenter__(self) -> Cluster:
        for wire in self._wires:
            await wire.start()
        direct = [f"nats://127.0.0.1:{port}" for port in self._inside]
        wires = [wire.url for wire in self._wires]
        for n, routes in enumerate([wires[1:], direct[2:], direct[1:2]]):
            self._start(n, routes, wires[n].removeprefix("nats://"))
        return self

    def _start(self, n: int, routes: list[str], advertise: str) -> None:
        folder = self._folder / NAMES[n]
        folder.mkdir()
        text = CONFIG.format(
            name=NAMES[n],
            port=self._ports[n],
            store=json.dumps(str(folder / "js")),
            inside=self._inside[n],
            advertise=json.dumps(advertise),
            routes=json.dumps(routes),
        )
        (folder / "nats.conf").write_text(text)
        with (folder / "log").open("wb") as log:
            binary = Path(sys.executable).parent / "nats-server"
            self._processes.append(subprocess.Popen([binary, "-c", folder / "nats.conf"], stderr=log))

    async def isolate_first(self) -> None:
        """Cut the first node off from the others. Its clients stay connected."""
        for wire in self._wires:
            await wire.stop()

    async def __aexit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            await asyncio.to_thread(process.wait)
        for wire in self._wires:
            await wire.stop()
