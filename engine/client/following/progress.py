"""What is known of one run: while it is followed, and when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from dspex.bus.message import id_time
from dspex.bus.records import Usage
from dspex.engine.graph.manifest import Manifest


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run, times in UTC.

    `status`: "running", "done", "failed" (it has dead letters), or "cancelled" (they are of calls that somebody has cancelled).
    `kept`: how it came where no log has it, "imported"; "" for one of the logs.
    """

    id: str
    topology: str
    digest: str
    parent: str | None
    status: str
    started: datetime
    finished: datetime | None
    calls: int
    usage: Usage
    dead_letters: int
    kept: str = ""


def ended(dead_letters: int, *, cancelled: bool) -> str:
    """The status of a run that is over."""
    return "cancelled" if cancelled else "failed" if dead_letters else "done"


PartitionId: TypeAlias = tuple[str, str, int]  # topology, stage, partition
Waits: TypeAlias = tuple[PartitionId, str]  # for an input of a partition to be taken
RowId: TypeAlias = tuple[PartitionId, str, int]  # of a partition's table


@dataclass
class RunProgress:
    """One run while it is followed.

    Attributes:
        waiting: input of a partition → how far that must be taken.
        open: rows that are its: open calls, and timers of events that were put off.
        started: its source event was seen.
        after: behind which sequence of the application's stream everything lies that it has emitted; None: not known.
    """

    id: str
    topology: str = ""
    waiting: dict[Waits, int] = field(default_factory=dict)
    open: set[RowId] = field(default_factory=set)
    started: bool = False
    finished: datetime | None = None
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    dead_letters: int = 0
    cancelled: bool = False
    after: int | None = None

    @property
    def idle(self) -> bool:
        """Nothing of it is known to be outstanding."""
        return not (self.waiting or self.open)

    @property
    def done(self) -> bool:
        return self.started and self.idle

    @property
    def status(self) -> str:
        """As `RunInfo` has it."""
        return "running" if not self.done else ended(self.dead_letters, cancelled=self.cancelled)

    def info(self, manifests: Mapping[str, Manifest]) -> RunInfo:
        digest = manifests[self.topology].digest if self.topology in manifests else ""
        started = id_time(self.id) or datetime.now(UTC)
        finished = self.finished if self.done else None
        return RunInfo(
            self.id, self.topology, digest, None, self.status, started, finished, self.calls, self.usage, self.dead_letters
        )
