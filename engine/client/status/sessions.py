"""Sessions as a client sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from dspex.bus.port import Bus
from dspex.bus.serving.sessions.state import SessionState
from dspex.bus.serving.sessions.store import AT_ONCE, KnownHeads, SessionStore


@dataclass(frozen=True)
class Turn:
    """A call of a session that was answered. `call`: its id, which is that of its record. `cut`, `secrets`: see StoredTurn."""

    call: str
    time: datetime
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    cut: bool = False
    secrets: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        found = {**vars(self), "time": self.time.isoformat()}
        del found["secrets"]
        return found


@dataclass(frozen=True)
class SessionInfo:
    """What is known of a session without its content.

    Attributes:
        turns: how many calls were answered. revision: how often data was saved.
        touched: when it was used last. ttl: how long after that it ends. ended: it is over, by `end` or by its ttl.
        running: id of the call that has it now. waiting: calls that wait for their turn.
    """

    id: str
    turns: int
    revision: int
    touched: datetime
    ttl: timedelta
    ended: bool
    running: str | None
    waiting: int

    def as_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        return {**vars(self), "touched": self.touched.isoformat(), "ttl": self.ttl.total_seconds()}

    @classmethod
    def of(cls, id: str, state: SessionState, now: float) -> SessionInfo:
        """What is to be told of a stored session."""
        line = state.standing(now)
        touched, ttl = datetime.fromtimestamp(state.touched, UTC), timedelta(seconds=state.ttl)
        running = line[0].call if line else None
        return cls(id, state.count, state.revision, touched, ttl, state.over(now), running, len(line[1:]))


class SessionHeads:
    """All sessions, for who looks again and again: only those that were changed meanwhile are read again."""

    def __init__(self) -> None:
        self._turn, self._known = asyncio.Lock(), KnownHeads()

    async def now(self, bus: Bus, app: str) -> list[SessionInfo]:
        """Those that there are now. Raises BusError."""
        async with self._turn:  # who asks at the same time reads nothing twice
            store = SessionStore(bus, app)
            self._known = await store.heads(self._known)
            now = await store.now() if self._known.heads else 0.0
            return [SessionInfo.of(id, head, now) for id, head in self._known.heads.items()]


async def listed(bus: Bus, app: str) -> AsyncIterator[SessionInfo]:
    """See `Client.sessions`. A few are read at a time, however many there are."""
    store = SessionStore(bus, app)
    ids = sorted(await store.ids())
    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        heads = await asyncio.gather(*(store.head(id) for id in some))
        now = await store.now()
        for id, state in zip(some, heads):
            if state is not None:
                yield SessionInfo.of(id, state, now)
