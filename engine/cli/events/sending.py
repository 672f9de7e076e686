"""Rows on their way to the server: many in flight, each stored once, and what became of each.

Rows go out in their order. Where the server is away for a moment, all that is not acknowledged is sent again, in that order and
with the same ids, so that what was stored without our hearing of it is not stored twice. Only a cluster that changes its leader
while rows are in flight may store later ones and not those before, which then come behind them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, cast

from dspex.bus.errors import BusError, DataError, DspexError, PayloadTooLarge, StreamFull
from dspex.bus.port import WINDOW, WINDOW_BYTES, Ack, NewMessage
from dspex.engine.cli.events.rows import Ready
from dspex.engine.cli.events.tables.row import CODE
from dspex.engine.cli.terminal.client import count
from dspex.engine.cli.terminal.progress import Bar
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.engine.client import publish as publishing
from dspex.engine.client.run import Run

if TYPE_CHECKING:
    from dspex.engine.client.client import Client

FLYING: Final = 4  # windows whose acknowledgements have not come
SAME_ROW_FOR: Final = 30.0  # seconds that rows are tried again while the server is away
MOST_SHOWN: Final = 20  # bad rows, and as many duplicates, that are printed one by one
FIRST_PAUSE: Final = 0.1
_Outcome = Ack | DspexError
_Flying = deque[tuple[list[Ready], asyncio.Task[list[_Outcome]]]]


class Sending:
    """The rows of one command.

    Attributes:
        runs: of the stored rows, where somebody wants them.
        stored, duplicates, faults: how many; a duplicate was stored before.
        fatal: why the rest was not sent.
    """

    def __init__(self, t: Terminal, c: Client, above: int, rate: float | None, *, keep: bool, ids: Mapping[str, str]) -> None:
        """`ids`: of rows that say their own, and the first row that has it. `keep`: the runs."""
        self._t, self._c, self._above, self._rate, self._keep, self._ids = t, c, above, rate, keep, ids
        self.runs: list[Run] = []
        self.stored = self.duplicates = self.faults = 0
        self.fatal: DspexError | None = None
        self._first: int | None = None  # sequence of what this command stored first
        self._bar: Bar | None = None
        self._live = False

    async def send(self, batches: AsyncIterator[list[Ready | DspexError]], bar: Bar, *, live: bool = False) -> None:
        """Send all rows, or as many as can be sent: `fatal` then says why. `live`: the next batch may come much later."""
        self._bar, self._live = bar, live
        began, sent, flying = time.monotonic(), 0, _Flying()
        async with asyncio.TaskGroup() as tasks:
            async for batch in batches:
                for window in self._windows(self._told(batch), alone=not sent):
                    if self._rate and (early := began + sent / self._rate - time.monotonic()) > 0:
                        await asyncio.sleep(early)
                    while flying and flying[0][1].done():  # what has to be sent again goes before this
                        await self._landed(flying)
                    if not sent:
                        await self._alone(window[0])  # an error for a subject that nothing stores appears once
                    else:
                        flying.append((window, tasks.create_task(self._tried(window, await self._drafts(window)))))
                    sent += len(window)
                    while len(flying) >= FLYING:
                        await self._landed(flying)
                    if self.fatal:
                        break
                while live and flying:
                    await self._landed(flying)
                if self.fatal:
                    break
            while flying:
                await self._landed(flying)

    def failed(self, e: DspexError) -> None:
        """Print what is wrong with a row."""
        self.faults += 1
        if self.faults <= MOST_SHOWN:
            self._t.error(e)
        elif self.faults == MOST_SHOWN + 1:
            self._t.note("more bad rows follow; only their number is printed")

    def _told(self, batch: Sequence[Ready | DspexError]) -> Iterator[Ready]:
        for one in batch:
            if isinstance(one, DspexError):
                self.failed(one)
            else:
                yield one

    def _windows(self, rows: Iterator[Ready], *, alone: bool) -> Iterator[list[Ready]]:
        """Rows that are sent together. `alone`: the first one goes by itself."""
        most = max(1, min(WINDOW, int(self._rate / 10))) if self._rate else WINDOW
        window, size = list[Ready](), 0
        for ready in rows:
            window.append(ready)
            size += len(ready.message.data)
            if alone or len(window) == most or size > WINDOW_BYTES:
                yield window
                window, size, alone = [], 0, False
        if window:
            yield window

    # -- to the server --------------------------------------------------------------------------------------------
    async def _alone(self, ready: Ready) -> None:
        try:
            run = await publish_surely(self._c, ready.message, self._above)
        except DspexError as e:
            self._refused(ready, e)
            return
        await self._stored([(ready, self._seen(Ack(run.stream, run.sequence, run.duplicate), resent=False))])

    async def _drafts(self, window: Sequence[Ready]) -> list[NewMessage] | DspexError:
        try:
            return await publishing.ready(self._c.bus, self._c.app, [ready.message for ready in window], self._above)
        except DspexError as e:
            return e

    async def _tried(self, window: Sequence[Ready], drafts: list[NewMessage] | DspexError) -> list[_Outcome]:
        try:
            if isinstance(drafts, DspexError):
                raise drafts
            return list(await self._c.bus.publish_all(drafts))
        except DspexError as e:
            if e.retryable or len(window) == 1:
                return [e] * len(window)
        found = list[_Outcome]()  # one of them cannot be sent: which one?
        for ready in window:
            found.append(await self._one(ready))
            if isinstance(found[-1], DspexError) and not _of_row(found[-1]):
                return found + [found[-1]] * (len(window) - len(found))
        return found

    async def _one(self, ready: Ready) -> _Outcome:
        try:
            run = await publishing.publish(self._c.bus, self._c.app, ready.message, self._above)
        except DspexError as e:
            return e
        return Ack(run.stream, run.sequence, run.duplicate)

    # -- what became of them --------------------------------------------------------------------------------------
    async def _landed(self, flying: _Flying) -> None:
        """Take in what became of the oldest window; and of all others, where some of it has to be sent again."""
        window, task = flying.popleft()
        again = await self._settled(window, await task)
        while again and flying:
            window, task = flying.popleft()
            again += await self._settled(window, await task)
        if again:
            await self._send_again(again)

    async def _send_again(self, rows: list[Ready]) -> None:
        end, pause = time.monotonic() + SAME_ROW_FOR, FIRST_PAUSE
        while rows:
            await asyncio.sleep(pause)
            pause, left = min(2.0, pause * 2), list[Ready]()
            for window in self._windows(iter(rows), alone=False):
                outcomes = await self._tried(window, await self._drafts(window))
                left += await self._settled(window, outcomes, again=time.monotonic() < end, resent=True)
            rows = left

    async def _settled(
        self, window: Sequence[Ready], outcomes: Sequence[_Outcome], *, again: bool = True, resent: bool = False
    ) -> list[Ready]:
        """Count and print what became of each; those that are to be sent again."""
        if self._first is not None and not resent and all(isinstance(outcome, Ack) for outcome in outcomes):
            await self._stored(list(zip(window, cast(Sequence[Ack], outcomes))))
            return []
        stored, rows = list[tuple[Ready, Ack]](), list[Ready]()
        for ready, outcome in zip(window, outcomes, strict=True):
            if isinstance(outcome, Ack):
                stored.append((ready, self._seen(outcome, resent=resent)))
            elif again and passes(outcome):
                rows.append(ready)
            else:
                self._refused(ready, outcome)
        await self._stored(stored)
        return rows

    def _seen(self, ack: Ack, *, resent: bool) -> Ack:
        """What was sent more than once is no duplicate of what this command stored."""
        if not ack.duplicate:
            self._first = ack.sequence if self._first is None else self._first
        elif resent and self._first is not None and ack.sequence > self._first:
            return ack._replace(duplicate=False)
        return ack

    async def _stored(self, stored: Sequence[tuple[Ready, Ack]]) -> None:
        duplicates = [(ready, ack) for ready, ack in stored if ack.duplicate]
        others = await self._others(duplicates) if self._ids or self._live else {}
        for ready, ack in duplicates:
            if ready.where in others:
                self.failed(others[ready.where])
            else:
                self.duplicates += 1
                self._tell_duplicate(ready, ack)
        self.stored += len(stored) - len(others)
        if self._keep or self._t.json:
            for ready, ack in stored:
                if ready.where not in others:
                    self._tell(publishing.run_at(self._c.bus, self._c.app, ready.message.subject, ack))
        if self._bar and stored:
            self._bar.advance(len(stored), count(self.duplicates, "duplicate") if self.duplicates else "")

    async def _others(self, duplicates: Sequence[tuple[Ready, Ack]]) -> dict[str, DspexError]:
        """What is wrong, by the row's place, where its id is that of another event: one that is made of a row cannot be."""
        looks = [other_event(self._c, ready, ack) for ready, ack in duplicates]
        return {ready.where: e for (ready, _), e in zip(duplicates, await asyncio.gather(*looks)) if e is not None}

    def _tell(self, run: Run) -> None:
        if self._keep:
            self.runs.append(run)
        elif self._t.json:
            self._t.emit(receipt(run))

    def _tell_duplicate(self, ready: Ready, ack: Ack) -> None:
        if self._t.json:
            return  # its object says it
        if self.duplicates <= MOST_SHOWN:
            first = self._ids.get(ready.id, ready.where)
            of = f"{first}, which has its id" if first != ready.where else "what was stored before"
            self._t.note(f"{ready.where} is a duplicate of {of}: {ack.stream} has it as {ack.sequence}")
        elif self.duplicates == MOST_SHOWN + 1:
            self._t.note("more duplicates follow; only their number is printed")

    def _refused(self, ready: Ready, e: DspexError) -> None:
        if _of_row(e):
            e.node = ready.where
            self.failed(e)
        elif self.fatal is None:
            self.fatal = e


def _of_row(e: object) -> bool:
    """Whether it is the row's own fault: others can be sent."""
    return isinstance(e, DataError | PayloadTooLarge)


def passes(e: DspexError) -> bool:
    """Whether it may pass by itself, soon."""
    return isinstance(e, BusError) and e.retryable and not isinstance(e, StreamFull)


async def publish_surely(c: Client, message: NewMessage, above: int) -> Run:
    """Store one event, and wait for a server that is away for a moment: with its id it is safe to send it again."""
    end, pause = time.monotonic() + SAME_ROW_FOR, FIRST_PAUSE
    while True:
        try:
            return await publishing.publish(c.bus, c.app, message, above)
        except DspexError as e:
            if not passes(e) or time.monotonic() > end:
                raise
        await asyncio.sleep(pause)
        pause = min(2.0, pause * 2)


async def other_event(c: Client, ready: Ready, ack: Ack) -> DataError | None:
    """What is wrong where the id of an event is that of another one; None where what is stored is the same."""
    if await publishing.is_stored_at(c.bus, c.app, ready.message, ack) is not False:
        return None
    return DataError(
        f"its id {ready.id!r} is that of another event, which {ack.stream} has as {ack.sequence}: this one is not stored",
        code=CODE,
        node=ready.where or "publish",
        fix="give it an id of its own; two minutes after the other one was published, its id is free again",
    )


def receipt(run: Run) -> Mapping[str, object]:
    """The `--json` object of a stored event."""
    place = {"run": run.id, "subject": run.subject, "stream": run.stream, "seq": run.sequence}
    return {**place, "duplicate": run.duplicate}
