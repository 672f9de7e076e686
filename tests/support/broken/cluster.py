"""A cluster of three real nats-servers on loopback, whose nodes can be killed, frozen and cut off from the others."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from broken.wire_cutter import WireCutter
from dspex.bus.local.launch import free_port

NAMES = ("first", "second", "third")
CONFIG = """
server_name: {name}
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: {store}, max_file: 8796093022208 }}
cluster {{ name: tests, listen: "127.0.0.1:{inside}", no_advertise: true, pool_size: -1, routes: {routes} }}
feature_flags {{ js_ack_fc_v2: false }}
"""
_LIBC = ctypes.CDLL(None)


class Node:
    """One server. `url` is for clients, `inside` for other nodes. Where its routes lead to nobody, it is cut off."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self._folder = name, folder / name
        self._port, inside = free_port(None), free_port(None)
        self.url, self.inside = f"nats://127.0.0.1:{self._port}", f"nats://127.0.0.1:{inside}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, routes: list[str] | None = None) -> None:
        """Start it, or start it again. routes: addresses of other nodes; None: as before."""
        file = self._folder / "nats.conf"
        if routes is not None:
            self._folder.mkdir(parents=True)
            store, inside = json.dumps(str(self._folder / "js")), self.inside.rpartition(":")[2]
            file.write_text(
                CONFIG.format(name=self.name, port=self._port, store=store, inside=inside, routes=json.dumps(routes))
            )
        with (self._folder / "log").open("ab") as log:
            binary = Path(sys.executable).parent / "nats-server"
            self._process = subprocess.Popen([binary, "-c", file], stderr=log, preexec_fn=_die_with_parent)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)


class Cluster:
    """Use it in a block; `urls` are those of the three nodes. All that connects one node with another goes by a wire."""

    def __init__(self, folder: Path) -> None:
        self.nodes = {name: Node(folder, name) for name in NAMES}
        self._wires = {(a, b): WireCutter(self.nodes[b].inside) for a in NAMES for b in NAMES if a != b}

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes.values()]

    async def __aenter__(self) -> Cluster:
        for wire in self._wires.values():
            await wire.start()
        for name, node in self.nodes.items():
            node.start([wire.url for (a, _), wire in self._wires.items() if a == name])
        return self

    def isolate(self, name: str) -> None:
        """Cut a node off from the others. Its clients stay connected."""
        for ends, wire in self._wires.items():
            if name in ends:
                wire.refuse()

    def heal(self) -> None:
        """Let all nodes reach each other again."""
        for wire in self._wires.values():
            wire.accept()

    async def __aexit__(self, *error: object) -> None:
        for node in self.nodes.values():
            await node.kill()
        for wire in self._wires.values():
            await wire.stop()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
