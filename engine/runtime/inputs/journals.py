"""Removes the journals of calls that are over, once that is committed. One that is left, after a crash, expires."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from dspex.bus import codecs, subjects
from dspex.bus.errors import BusError, DspexError
from dspex.bus.port import Bus
from dspex.bus.records import NodeEvent
from dspex.bus.seldom import Seldom, logger
from dspex.engine.graph.nodes import Call
from dspex.engine.log.rows import NONE
from dspex.engine.runtime.arrival import Answered, Due, Told, What
from dspex.engine.runtime.walk.compile import Stage

_log = logger("dspex.engine")
MOST: Final = 10_000  # journals that wait to be removed
TOGETHER: Final = 16  # that are removed at a time
PAUSE: Final = 1.0  # seconds until it is tried again


class SpentJournals:
    """The journals of calls whose end is committed here."""

    def __init__(self, bus: Bus, app: str) -> None:
        self._bus, self._app = bus, app
        self._subjects = deque[str](maxlen=MOST)
        self._wake = asyncio.Event()
        self._seldom = Seldom(_log)

    def landed(self, stage: Stage, told: Sequence[Told]) -> None:
        """What came of arrivals is committed: some calls are over."""
        for what, notes, _ in told:
            event = _event(what) if "record" in notes and not _has_none(what) else None
            node = stage.calls.get(event.node) if event is not None else None
            call = _call(node.call, event) if node is not None and event is not None else None
            if event is not None and event.call is not None and call is not None and call.spec.has_journal:
                self._subjects.append(subjects.request(self._app, call.pool, event.call))
                self._wake.set()

    async def run(self) -> None:
        """Remove them as they come, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._subjects:
                some = [self._subjects.popleft() for _ in range(min(TOGETHER, len(self._subjects)))]
                try:
                    await asyncio.gather(*(self._bus.purge(subjects.requests(self._app), s, below=NONE) for s in some))
                except BusError as error:
                    self._seldom.warning("journals of calls are not removed", why=error.message)
                    if error.retryable:
                        self._subjects.extend(some)
                    await asyncio.sleep(PAUSE)


def _call(call: Call, event: NodeEvent) -> Call | None:
    try:
        return call if call.of is None else call.for_event(codecs.decode(event.data, event.content_type), event.origin.subject)
    except DspexError:
        return None


def _has_none(what: What) -> bool:
    """Whether a call has ended without having made a request, as most programs of users' own do: then there is no journal. An
    execution that died before this one, without a record, may have left one, which expires.
    """
    record = what.record if isinstance(what, Answered) else None
    return record is not None and record.try_number == 1 and record.outputs is not None and not record.requests


def _event(what: What) -> NodeEvent | None:
    """What a call was made for that has ended."""
    match what:
        case Answered():
            return what.event
        case Due(what=NodeEvent() as event):
            return event
        case Due(what=Answered() as answered):
            return answered.event
        case _:
            return None
