"""The inputs of a stage: logs that a partition reads in order from a recorded position. One pump reads any of them.

input     log                                         arrives as
--------  ------------------------------------------  ------------------------------
source    a subject of any stream                     an event
events    the partition's subject for events          an event that came over a hop, or is redriven
time      subjects of the stages before               a watermark; read together with events, since it stands behind them
records   the partition's subject for records         the record of a call
timers    the partition's own table                   a timer that is due
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Protocol

from dspex.bus.message import Message
from dspex.bus.port import Reader
from dspex.engine.runtime.arrival import Arrival
from dspex.engine.runtime.partition import Partition

EVERY: Final = -2
"""In place of the index of a partition: the message is for all of them."""


class Input(Protocol):
    """A log as a pump reads it.

    `name`: the key of its position in the tables. `gated`: it waits while too much is open in a partition. What closes
    something or wakes it is never held back.
    """

    name: ClassVar[str]
    gated: ClassVar[bool]

    async def open(self, partitions: Sequence[Partition], after: int, name: str) -> Reader:
        """Read what is for these partitions, behind a sequence. `name`: of the consumer."""
        ...

    async def verify(self, partitions: Sequence[Partition], clock: float) -> None:
        """Compare the positions with the log, before anything is read."""
        ...

    async def begin(self, partitions: Sequence[Partition]) -> int:
        """Behind which sequence these partitions have something to read, after `verify`."""
        return min(p.tables.position(self.name).after for p in partitions)

    def owner(self, message: Message) -> int:
        """The index of the partition that a message is for; EVERY: of all, and they are told."""
        ...

    def tell(self, p: Partition, message: Message, clock: float) -> None:
        """Let a partition know of a message for all of them, in the order of its log."""
        return

    def leaves(self, p: Partition) -> None:
        """A partition stops reading with the others: what they are told from now on may lie behind what it has not taken."""
        return

    def at_once(self, p: Partition, message: Message, clock: float) -> Arrival | None:
        """All that arrives with a message, where nobody need be asked for more; None: `arrivals` says it. It is only for speed:
        a coroutine for each event costs as much as reading its JSON."""
        return None

    async def arrivals(self, p: Partition, message: Message, clock: float) -> Sequence[Arrival]:
        """What arrives with a message. What that needs besides the message is asked of the bus."""
        ...
