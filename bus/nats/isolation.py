"""Leaving a server that is cut off from its cluster.

Such a node keeps its clients, and answers requests to JetStream with silence, or with "no leader", for as long as it is cut
off. The connection itself is well, so nothing else would ever make us try another server.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dspex.bus.errors import BusError

if TYPE_CHECKING:
    from dspex.bus.nats.connection import Connection

_ELECTION: Final = 10.0  # seconds without a leader until another server is tried; an election takes 4 to 9
_PROBE: Final = 3.0  # seconds that the server has for one answer
_AGAIN: Final = 1.0  # seconds between two questions


class Isolation:
    """Examines the server of a connection when there is doubt."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tasks = connection.tasks(lambda error: None)

    def suspect(self) -> None:
        """A request to JetStream was not answered, or only that there is no leader: find out why, unless that is under way."""
        if not self._tasks and self._connection.others():
            self._tasks.start(self._examine(), "examine")

    async def _examine(self) -> None:
        """Leave the server for another one, unless it reaches the leader of JetStream within the time of an election.

        A request for one stream says nothing: a stream of one replica lives on, or is away, with the node that has it.
        """
        now, at = asyncio.get_running_loop().time, self._connection.at
        end = now() + _ELECTION
        while at == self._connection.at and self._connection.up.is_set():
            try:
                await self._connection.api("INFO", None, timeout=_PROBE)
                return
            except BusError as e:
                if now() >= end:
                    await self._connection.move(f"JetStream does not answer: {e.message}")
            await asyncio.sleep(_AGAIN)

    async def stop(self) -> None:
        """Examine no more."""
        await self._tasks.stop()
