"""How many children this process of a pool has: its share of what all processes of the pool are to have together.

That number is an operator's (`dspex pools scale`), else one by the backlog (`pools.*.scale`); where there is neither, each
process has as many as its own settings say. Every process has a key in the bucket, its row, with which it says every two
seconds that it lives. Each computes its share by itself, from the rows of all. By the backlog one decides for all: the living
process with the lowest id, which says in its row what it has decided. Another one that takes over begins with that.

Who is wrong about the others for a moment has too few children or too many, and nothing else: who gets a call does not depend
on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import orjson
import structlog
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import BusError, DecodeError
from dspex.bus.local.processes import is_dead, process
from dspex.bus.port import Bucket, Bus
from dspex.bus.records import MOST_PROCESSES, PoolSize
from dspex.bus.seldom import Seldom
from dspex.bus.serving.work_consumers import backlog
from dspex.bus.tasks import Tasks
from dspex.workers.config import PoolConfig
from dspex.workers.pool.children.sizing import Needed, by_backlog, needed, spread

log = structlog.get_logger("dspex.workers")

BEAT: Final = 2.0  # seconds between two rows of a process
MOST_CALLS: Final = 1_000_000_000  # that are believed of a process
SILENT: Final = 5  # beats without which a process counts as dead


class ParentRow(TypedDict):
    """What a process of a pool says of itself.

    Attributes:
        host, boot, pids, pid: see bus/local/processes.py.
        starting: its children are not ready yet.
        most: how many it can have; None: any number. 0: it takes no calls, and goes.
        busy, waiting: slots that are taken, and calls that wait for one or were sent away since the row before.
        decided: how many children all processes are to have, by the backlog; None where it does not say.
    """

    host: str
    boot: str
    pids: str
    pid: int
    starting: bool
    most: int | None
    busy: int
    waiting: int
    decided: int | None


class Scaling:
    """The share of one process.

    Args:
        id: of the process.
        resize: has that many children; awaited until they are ready.
        load: slots that are taken, and calls that wait or were sent away since it was asked last.
        failed: called with an error that is a bug of dspex.

    Attributes:
        total: children of all processes together; None: each has its own number.
        resting: this one is to have none.
        others: the ids of the other processes that take calls, as this one saw them last.
    """

    def __init__(
        self,
        bus: Bus,
        config: PoolConfig,
        id: str,
        resize: Callable[[int], Awaitable[None]],
        load: Callable[[], tuple[int, int]],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._bus, self._config, self._id, self._resize, self._load = bus, config, id, resize, load
        self.total: int | None = None
        self.resting = False
        self._share = config.size
        self._starting = True
        self._seen: dict[str, tuple[int, float]] = {}  # id → revision of its row, and since when it is that
        self.others: tuple[str, ...] = ()
        self._needed: Needed = ()
        self._one_at_a_time = asyncio.Lock()
        self._seldom = Seldom(log)
        self._tasks = Tasks(f"scaling of {config.name}", lambda name, error: failed(error))

    async def begin(self) -> int:
        """Say that this process starts; how many children it is to start with."""
        await self._look()
        return self._share

    def start(self) -> None:
        """Its children are ready: say so, and follow what changes."""
        self._starting = False
        self._tasks.start(self._run(), "look")

    async def stop(self) -> None:
        """Say that this process goes, so that others take its share at once."""
        await self._tasks.stop()
        self.resting = True
        await self._look()

    async def look(self) -> None:
        """Look now. Returns when this process has as many children as it is to have."""
        await self._look()
        await self._resize(self._share)

    async def takes_calls(self, id: str) -> bool:
        """Whether another process lives and takes calls, by its row as it is now. Raises BusError."""
        bucket = await self._bus.bucket(subjects.bucket(self._config.app))
        stored = await bucket.get(subjects.member_key(subjects.parents(self._config.name), id))
        row = self._living_row(id, *stored) if stored is not None else None
        return row is not None and row["most"] != 0

    async def _run(self) -> None:
        while True:
            before = self._share
            await self._look()
            if self._share != before:
                self._tasks.start(self._resized(self._share), "resize")
            await asyncio.sleep(BEAT)

    async def _resized(self, share: int) -> None:
        log.info("pool is resized", pool=self._config.name, size=share, of=self.total)
        await self._resize(share)

    async def _look(self) -> None:
        async with self._one_at_a_time:
            try:
                if await self._bus.has("bucket", name := subjects.bucket(self._config.app)):
                    await self._beat(await self._bus.bucket(name))
            except BusError as error:
                self._seldom.warning("cannot look how many there shall be of a pool", pool=self._config.name, why=error.message)
            if self.total is None:
                self._share = 0 if self.resting else self._config.size

    async def _beat(self, bucket: Bucket) -> None:
        kind = subjects.parents(self._config.name)
        set_by, found = await asyncio.gather(bucket.get(subjects.size_key(self._config.name)), bucket.items(kind))
        others = self._living({key.rpartition(".")[2]: row for key, row in found.items()})
        self.others = tuple(id for id, row in others.items() if row["most"] != 0 and not row["starting"])
        own = self._row()
        wanted = self._wanted(set_by[0]) if set_by is not None else None
        own["decided"] = await self._decided(others, own) if self._config.scale is not None else None
        self.total = own["decided"] if wanted is None else wanted
        if self.total is not None:
            members = {id: row["most"] for id, row in others.items() if self._starting or not row["starting"]}
            self._share = spread(self.total, {**members, self._id: own["most"]})[self._id]
        await bucket.put(subjects.member_key(kind, self._id), orjson.dumps(own))

    def _row(self) -> ParentRow:
        busy, waiting = self._load()
        gpus = self._config.gpus
        most = 0 if self.resting else len(self._config.devices) // gpus if gpus else None
        here = process()
        return {
            "host": here["host"],
            "boot": here["boot"],
            "pids": here["pids"],
            "pid": here["pid"],
            "starting": self._starting,
            "most": most,
            "busy": busy,
            "waiting": waiting,
            "decided": None,
        }

    def _wanted(self, value: bytes) -> int | None:
        try:
            return PoolSize.read(value).size
        except DecodeError as error:
            self._seldom.warning("what no operator set is left out", pool=self._config.name, why=error.message)
            return None

    def _living(self, found: Mapping[str, tuple[bytes, int]]) -> dict[str, ParentRow]:
        """The rows of the others that live."""
        rows = {id: self._living_row(id, *stored) for id, stored in found.items() if id != self._id}
        self._seen = {id: self._seen[id] for id in found if id in self._seen}
        return {id: row for id, row in rows.items() if row is not None}

    def _living_row(self, id: str, value: bytes, revision: int) -> ParentRow | None:
        """The row of another process; None where that is dead, or never wrote one."""
        now = asyncio.get_running_loop().time()
        if (seen := self._seen.get(id)) is None or seen[0] != revision:
            self._seen[id] = (revision, now)
        if now - self._seen[id][1] > SILENT * BEAT:
            return None
        try:
            row = read_row(value)
        except DecodeError as error:
            self._seldom.warning("what no process of the pool wrote is left out", pool=self._config.name, why=error.message)
            return None
        return None if is_dead(row) else row

    async def _decided(self, others: Mapping[str, ParentRow], own: ParentRow) -> int | None:
        """By the backlog: this process decides where no other one that takes calls has a lower id, else as that one did."""
        bounds = self._config.scale
        assert bounds is not None
        now = asyncio.get_running_loop().time()
        rows = {id: row for id, row in others.items() if row["most"] != 0}
        said = [row["decided"] for row in others.values() if row["decided"] is not None]
        before = self.total if self.total is not None else max(said, default=self._config.size)
        if (first := min(rows, default=self._id)) < self._id or self.resting:
            self._needed = ()
            told = rows[first]["decided"] if first in rows else None
            return bounds.within(before if told is None else told)
        waiting = sum(row["waiting"] for row in [*rows.values(), own]) + await backlog(
            self._bus, self._config.app, self._config.name
        )
        busy = sum(row["busy"] for row in [*rows.values(), own])
        need = needed(busy, waiting, self._config.slots)
        size, self._needed = by_backlog(self._needed or [(now, before)], now, need, bounds)
        return size


def read_row(value: bytes) -> ParentRow:
    """The row that a process wrote. Raises DecodeError."""
    try:
        row: ParentRow = checked(ParentRow, "the row of a process", orjson.loads(value))
    except ValueError as e:
        raise DecodeError(f"not the row of a process: {e}") from None
    for name in ("most", "busy", "waiting", "decided"):
        figure = row.get(name)
        if isinstance(figure, int) and not 0 <= figure <= (MOST_PROCESSES if name == "decided" else MOST_CALLS):
            raise DecodeError(f"{name} of a process is {figure}")
    return row
