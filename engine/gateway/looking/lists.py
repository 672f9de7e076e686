"""Lists of runs: each is read once for all who look at it, and again only where anything was written since."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dspex.bus import subjects
from dspex.bus.settings.duration import seconds
from dspex.engine.client.client import Client
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.runs import kept

_KEPT: Final = 8  # lists, those that were asked for last


class RunLists:
    """The lists that are kept in mind, by what is asked for."""

    def __init__(self) -> None:
        self._lists = OrderedDict[str, RunList]()

    def of(self, chosen: Mapping[str, Any]) -> RunList:
        """The list of what is asked for: arguments of `Client.runs`."""
        asked = repr(sorted(chosen.items()))
        found = self._lists[asked] = self._lists.pop(asked) if asked in self._lists else RunList(chosen)
        if len(self._lists) > _KEPT:
            self._lists.popitem(last=False)
        return found


class RunList:
    """The latest runs that are asked for, as they were read last."""

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        self._chosen, self._turn = chosen, asyncio.Lock()  # who asks at the same time reads nothing twice
        self._found = list[RunInfo]()
        self._at: Sequence[object] | None = None  # what was written when it was read; None: it never was

    async def soon(self, client: Client) -> list[RunInfo]:
        """What it was when it was read last, which may be old; where it never was, what it is now. Raises as `now`."""
        return self._recent() if self._at is not None else await self.now(client)

    async def now(self, client: Client) -> list[RunInfo]:
        """What it is now. Raises as `Client.runs`."""
        async with self._turn:
            if (at := await _written(client)) != self._at:
                self._found, self._at = [info async for info in client.runs(**self._chosen)], at
            return self._recent()

    def _recent(self) -> list[RunInfo]:
        """Those that did not become too old meanwhile."""
        if (since := self._chosen["since"]) is None:
            return self._found
        return [info for info in self._found if info.started.timestamp() >= time.time() - seconds(since)]


async def _written(client: Client) -> Sequence[object]:
    """How far the application's stream and those of its sources are, what is applied, and what is kept beside: no run changes
    without them.
    """
    applied = await client.manifests()
    streams = {stream for one in applied.values() for stream in one.streams.values()}
    infos = await asyncio.gather(*map(client.bus.stream, sorted({subjects.stream(client.app), *streams})))
    ends = [(info.first, info.last) for info in infos if info is not None]
    versions = sorted((name, one.version) for name, one in applied.items())
    return [*ends, *versions, await kept.revision(client.bus, client.app)]
