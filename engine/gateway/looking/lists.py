"""Lists of runs: each is read once for all who look at it, and again only where anything was written since."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from dspex.bus.settings.duration import seconds
from dspex.engine.client.client import Client
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.gateway.looking.reading import ReadOnWrite

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
        async def read(client: Client) -> list[RunInfo]:
            return [info async for info in client.runs(**chosen)]

        self._since, self._runs = chosen["since"], ReadOnWrite(read)

    @property
    def last(self) -> list[RunInfo] | None:
        """What it was when it was read last, which may be old; None: it never was."""
        return self._recent(self._runs.last) if self._runs.last is not None else None

    async def soon(self, client: Client) -> list[RunInfo]:
        """What it was when it was read last; where it never was, what it is now. Raises as `now`."""
        return last if (last := self.last) is not None else await self.now(client)

    async def now(self, client: Client) -> list[RunInfo]:
        """What it is now. Raises as `Client.runs`."""
        return self._recent(await self._runs.now(client))

    def _recent(self, found: list[RunInfo]) -> list[RunInfo]:
        """Those that did not become too old meanwhile."""
        if self._since is None:
            return found
        return [info for info in found if info.started.timestamp() >= time.time() - seconds(self._since)]
