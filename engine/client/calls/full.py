"""Calls that find no room in their pool wait in one line, and go on as room is made."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary

import orjson

from dspex.bus import subjects
from dspex.bus.errors import DspexError, Saturated
from dspex.bus.port import Bus
from dspex.bus.records import CallRequest
from dspex.engine.client.status.pools import pool_row, pool_rows
from dspex.engine.client.status.rows import PoolRow

SHORTEST: Final = 0.05  # seconds until the first call of a line asks again, where none of its process has ended meanwhile
LONGEST: Final = 0.25
OFTEN: Final = 1.0  # seconds between two slots that are left to others, where somebody took the last one
SELDOM: Final = 16.0  # where nobody did
STATUS_WITHIN: Final = 2.0  # seconds for what a pool says of itself
_MOST: Final = 1 << 10  # calls of one line that ask again at once

_lines: WeakKeyDictionary[Bus, WeakValueDictionary[tuple[str, str, str], FullPool]] = WeakKeyDictionary()
_numbers = count()


class FullPool:
    """The calls over one connection that wait for room in a pool, first come, first served.

    A call that ends lets the next one go, because a slot is free now. As others' calls end too, and pools grow, the first of
    the line asks again now and then; where it is taken two do, then four. If each call asked again by itself, refusing them
    would be most of what a full pool does, and its slots would wait for the next one that asks: of 1,500 calls at once over 16
    slots, 230 were answered a second so, and 2,000 in a line.

    Now and then a free slot is left for so long that whoever waits asks meanwhile: else who has calls running would have all
    slots until its line is over, and others none.

    Attributes:
        seen: what the pool said of itself when no worker took a call.
    """

    def __init__(self, bus: Bus, app: str, pool: str) -> None:
        self._bus, self._app, self._pool = bus, app, pool
        self.seen: PoolRow | None = None
        self._looked = -inf  # when the pool was asked for that
        self._line: list[tuple[int, asyncio.Future[None]]] = []
        self._pause, self._several = SHORTEST, 1
        self._timer: asyncio.TimerHandle | None = None
        self._every, self._leaves_at = OFTEN, self._now() + OFTEN  # when a slot is left, and how long after the last one
        self._back = -1  # the place of the call that went when the last one had been left

    @staticmethod
    def of(bus: Bus, app: str, pool: str, request: CallRequest) -> FullPool:
        """Where a call is to wait. One that only a certain worker may take waits with those that have this in common: it may
        wait longer than all others.
        """
        if (lines := _lines.get(bus)) is None:  # not `setdefault`: to make one for each call would cost as much as to send it
            lines = _lines[bus] = WeakValueDictionary()
        name = (app, pool, request.affinity or "" if request.required else "")
        found = lines.get(name)
        if found is None:
            found = lines[name] = FullPool(bus, app, pool)
        return found

    async def come(self) -> int:
        """Get a place in the line, and wait behind the calls that wait already."""
        place = next(_numbers)
        if self._line:
            await self._turn(self._wait(place))
        return place

    async def refused(self, place: int) -> None:
        """Wait until a call that was refused may ask again. Raises Saturated where there is no worker to wait for."""
        self._several = 1
        if place == self._back:
            self._every, self._leaves_at = OFTEN, self._now() + OFTEN  # somebody else has taken what was left
        await self._turn(self._wait(place), look=True)

    def took(self) -> None:
        """A worker has taken a call: there may be room for more."""
        if self._line and self._pause > SHORTEST and self._timer is not None:
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(SHORTEST, self._again)
        self._pause = SHORTEST

    def freed(self) -> None:
        """A call that a worker had taken is over."""
        if self._line and self._now() >= self._leaves_at:
            self._leave_one()
        elif self._line:
            self.took()
            self._next()

    def _leave_one(self) -> None:
        self._every = min(SELDOM, self._every * 2)
        self._leaves_at, self._pause, self._several = self._now() + self._every, SHORTEST, 1
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LONGEST, self._take_back)

    def _take_back(self) -> None:
        self._back = self._line[0][0] if self._line else -1
        self._again()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _wait(self, place: int) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        heappush(self._line, (place, turn))
        if self._timer is None:
            self._timer = loop.call_later(self._pause, self._again)
        return turn

    async def _turn(self, turn: asyncio.Future[None], *, look: bool = False) -> None:
        """Wait for a turn. `look`: and see whether there is a worker at all; once for all that were refused together."""
        try:
            now = self._now()
            if look and now - self._looked >= SHORTEST:
                self._looked = now
                await self._look()
            await turn
        except (asyncio.CancelledError, DspexError):
            self._leave(turn)
            raise

    async def _look(self) -> None:
        try:
            self.seen = await _someone_there(self._bus, self._app, self._pool)
        except Saturated as error:
            self._looked = -inf
            self._fail(error)

    def _leave(self, turn: asyncio.Future[None]) -> None:
        """A call waits no more. If it was its turn, it is that of the next one."""
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self._next()
        turn.cancel()

    def _again(self) -> None:
        self._timer = None
        several, self._several = self._several, min(_MOST, self._several * 2)
        self._pause = min(LONGEST, self._pause * 2)
        while several and self._next():
            several -= 1
        if self._line:
            self._timer = asyncio.get_running_loop().call_later(self._pause, self._again)

    def _next(self) -> bool:
        """Let the first one go; whether there was one."""
        while self._line:
            _, turn = heappop(self._line)
            if not turn.done():
                turn.set_result(None)
                return True
        return False

    def _fail(self, error: Saturated) -> None:
        line, self._line = self._line, []
        for _, turn in line:
            if not turn.done():
                turn.set_exception(Saturated(error.message, node=error.node, fix=error.fix))


async def _someone_there(bus: Bus, app: str, pool: str) -> PoolRow | None:
    """What a pool says of itself; None for what no pool says. Raises Saturated where there is no worker to wait for."""
    why = "has no worker"
    try:
        row = pool_row(await bus.request(subjects.control(app, pool), orjson.dumps({"kind": "status"}), timeout=STATUS_WITHIN))
        if row is None or not row.get("draining"):
            return row
        rows = await pool_rows(bus, app, [pool])  # others of its processes may stay
        if staying := [row for row in rows if row["id"] is not None and not row.get("draining")]:
            return staying[0]
        why = "has no worker that takes calls: its processes finish what they run, and end"
    except Saturated:
        pass
    fix = f"start one: dspex worker {pool}   (or dspex run, which starts all pools)"
    raise Saturated(f"pool {pool} {why}", node=pool, fix=fix)
