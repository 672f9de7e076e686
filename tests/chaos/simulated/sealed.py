"""Sealed payloads in a simulation: the key of its processes, and how the oracle reads what they sealed."""

from __future__ import annotations

from typing import Final

from dspex.bus import subjects
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.memory.server import MemoryServer
from dspex.bus.message import Message
from dspex.bus.serving.keys.keyring import Keyring
from simulated.source import APP

KEYS: Final = {"SEAL": "a key of the simulation, and no other" * 2}


class Seals:
    """The key of a run, `on` where its payloads are sealed. `read`: how many the oracle has opened."""

    def __init__(self, server: MemoryServer, *, on: bool) -> None:
        self._server, self._on, self.read = server, on, 0
        self._keyring = Keyring(server.connect(), APP, "SEAL", KEYS)

    def seal(self, bus: MemoryBus) -> None:
        """Have a process seal and open payloads."""
        if self._on:
            bus.sealing = Keyring(bus, APP, "SEAL", KEYS)

    def opened(self, message: Message) -> Message:
        """The message with its own body, at once: the oracle takes no time of the run."""
        if subjects.SEALED not in message.headers:
            return message
        self.read += 1
        name = message.headers[subjects.SEALED].rpartition(" ")[2]
        if self._keyring._fresh(name) is None:
            keys = self._server.streams[subjects.keys(APP)]
            self._keyring._unwrapped(name, keys.messages[keys.last_of(subjects.key(APP, name))].data)
        found: object = None
        try:
            self._keyring.opened(message).send(None)  # with the key at hand it asks nobody
        except StopIteration as done:
            found = done.value
        if not isinstance(found, Message):
            raise AssertionError(f"what a process sealed cannot be opened: {message}")
        return found
