"""What a host lends to the stages it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from dspex.bus.errors import BusError
from dspex.bus.port import Bus
from dspex.bus.serving.keys.signatures import Keys
from dspex.bus.serving.payloads import MOST
from dspex.engine.graph import manifest as manifests
from dspex.engine.log.torn_commits import TornCommits
from dspex.engine.runtime.arrival import Told
from dspex.engine.runtime.committer import Committer


class Revoked(Protocol):
    """Called when a partition is not this engine's any more: fenced, given up, or not to be claimed now."""

    def __call__(self, topology: str, stage: str, index: int) -> None: ...


class Tally(Protocol):
    """Counts what came of arrivals of a topology, for those who look."""

    def __call__(self, topology: str, told: Sequence[Told], /) -> None: ...


@dataclass(frozen=True)
class Services:
    """Attributes:
    bus, app, stream: the connection, the application and its stream.
    engine: id of this engine.
    committer: the one writer of this process.
    clock: seconds since the epoch.
    revoked: called when a partition is not this engine's any more.
    repair: removes what a torn commit left before a claim.
    readers: bounds how many partitions catch up with a reader of their own at a time.
    most_arrivals: arrivals of one partition in one commit.
    most_open_calls: open calls and events that were put off, of one partition; over it gated arrivals wait.
    limit: bytes of one payload. state_limit: bytes of the state of one partition.
    room: set while the application's stream has room for what sources bring: they wait for it.
    keys: pool → the keys that sign its records; see bus/serving/keys/signatures.py.
    tally: told what was committed, but for events that were only taken.
    behind: (pool, band) → requests up to this sequence are not delivered any more; see WorkConsumers.
    """

    bus: Bus
    app: str
    stream: str
    engine: str
    committer: Committer
    clock: Callable[[], float]
    revoked: Revoked
    repair: TornCommits
    readers: asyncio.Semaphore
    room: asyncio.Event
    tally: Tally
    most_arrivals: int = 500
    most_open_calls: int = 10_000
    limit: int = MOST
    state_limit: int = 256 << 20
    keys: Mapping[str, Keys] = field(default_factory=dict[str, Keys], repr=False)
    behind: Mapping[tuple[str, int], int] = field(default_factory=dict)

    async def newest(self, topology: str, least: int) -> int:
        """The version of a topology's manifest that is applied; `least`: one that is known to be. Raises BusError."""
        applied = (await manifests.of_application(self.bus, self.app)).get(topology)
        return max(least, applied.version if applied is not None else 0)

    async def stream_is_there(self) -> bool:
        """Whether the application has its stream. Without it every question is refused, and nothing can be decided."""
        try:
            return await self.bus.has("stream", self.stream)
        except BusError:
            return False  # nobody knows: who asks has to try again


class StageOrder(NamedTuple):
    """A change of ownership, carried out by the own task of a stage's runner."""

    what: Literal["own", "recover", "release", "restart", "fail"]
    partition: int = -1
    error: BaseException | None = None
