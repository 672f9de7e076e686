"""What a commit took of a run, and what came of that."""

from __future__ import annotations

from typing import NamedTuple

from dspex.bus.message import Message
from dspex.engine.client.following.progress import PartitionId


class Taken(NamedTuple):
    """A commit in which something of the run was taken.

    Attributes:
        sequence, time: of its entry. clock: of the engine, for what it took.
        inputs: what was taken: an input, and the sequence in it; for timers, the number.
        opened, closed: numbers of calls and timers, by table. claim: the sequence of that of who wrote it.
        messages: of the run, that lie right before the entry or in it: outputs, letters, requests; and frames.
        woke: the operators with state that timers among the inputs have woken, with the keys and names of those.
    """

    partition: PartitionId
    sequence: int
    time: float
    clock: float
    inputs: tuple[tuple[str, int], ...]
    opened: tuple[tuple[str, int], ...]
    closed: tuple[tuple[str, int], ...]
    messages: tuple[Message, ...]
    claim: int = 0
    woke: tuple[tuple[str, str, str], ...] = ()
