"""Claims of many logs at once: what a start and a take-over cost does not grow with the partitions.

The last messages of all logs are read with one request, from any replica, and all claims go in one atomic batch, each with the
check that its log has not moved. After a refusal the logs are read from the leader, and those that moved go into a batch of
their own: another one may have claimed, or the replica was behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from dspex.bus import subjects
from dspex.bus.errors import BusError, DataError, DecodeError, Fenced, PayloadTooLarge, Unsettled
from dspex.bus.message import Message
from dspex.bus.port import Ack, Bus, NewMessage
from dspex.bus.records import CallRequest
from dspex.bus.seldom import logger
from dspex.bus.serving import payloads
from dspex.engine.log.commit_log import CommitLog
from dspex.engine.log.latest import Latest, end_of
from dspex.engine.log.tables import Tables
from dspex.engine.log.torn_commits import TornCommits

_log = logger("dspex.engine")

MOST = 500  # claims of one batch
BEHIND = 60.0  # seconds that the clock may be behind a partition's
READ_AT_ONCE = 16  # logs that are read back
AGAIN = 0.1  # seconds until a batch is sent again of which nobody knows what became of it


class Claims(NamedTuple):
    """What came of it.

    Attributes:
        won: those that are claimed, with their tables.
        unread: those that could not be read now, before their claim or behind it, or of which a request could not be sent, and
            why: they are to be given again.
        lost: those that somebody else claimed at the same time, twice, or meanwhile.
        ahead: those whose clock is over a minute ahead of ours, with the time of their last entry: they wait.
    """

    won: list[tuple[CommitLog, Tables]]
    unread: list[tuple[CommitLog, BusError]]
    lost: list[CommitLog]
    ahead: list[tuple[CommitLog, float]]


async def take_over(
    bus: Bus,
    logs: Sequence[CommitLog],
    tables: Callable[[], Tables],
    clock: Callable[[], float],
    repair: TornCommits,
    unwanted: Callable[[Tables], Collection[int]] = lambda tables: (),
) -> Claims:
    """Claim logs of one stream, and read them back.

    Args:
        tables: makes new ones. unwanted: open calls of a log that are not to be asked any more.

    A log that is given again, and still ends with its claim, is only read back: tries store nothing, however many they are.

    Raises BusError; TopologyError where a newer manifest claimed one.
    """
    done, claimed = Claims([], [], [], []), list[CommitLog]()
    for some in _batches(logs):
        lasts = await bus.multi_last(some[0].address.stream, [log.address.subject for log in some])
        moved = await _claim(bus, some, lasts, clock, claimed, done)
        if moved:
            done.lost.extend(await _claim(bus, moved, await _leaders(bus, moved), clock, claimed, done))
    if not claimed:
        return done
    readers = asyncio.Semaphore(READ_AT_ONCE)
    # logs are never torn, so they are read meanwhile
    recoveries = [_recover(bus, log, tables(), clock, unwanted, readers, done) for log in claimed]
    torn = repair.before(max(log.claimed for log in claimed), min(log.after for log in claimed))  # of all claims at once
    # all are waited for: one that went on behind an error would send what the next try sends again, under the same claim
    for failed in await asyncio.gather(torn, *recoveries, return_exceptions=True):
        if isinstance(failed, BaseException):
            raise failed
    return done


async def _recover(
    bus: Bus,
    log: CommitLog,
    tables: Tables,
    clock: Callable[[], float],
    unwanted: Callable[[Tables], Collection[int]],
    readers: asyncio.Semaphore,
    done: Claims,
) -> None:
    try:
        async with readers:
            await log.recover(tables)
            await send_what_was_not(bus, log, tables, clock(), unwanted(tables))
    except Fenced:
        done.lost.append(log)
    except BusError as e:
        if not e.retryable:
            raise
        _log.debug("a log cannot be taken over yet", subject=log.address.subject, why=e.message)
        done.unread.append((log, e))
    else:
        done.won.append((log, tables))


def _batches(logs: Sequence[CommitLog]) -> Iterator[Sequence[CommitLog]]:
    for start in range(0, len(logs), MOST):
        yield logs[start : start + MOST]


async def _claim(
    bus: Bus,
    logs: Sequence[CommitLog],
    lasts: dict[str, Message],
    clock: Callable[[], float],
    claimed: list[CommitLog],
    done: Claims,
) -> list[CommitLog]:
    """Claim logs whose last messages are known, and add them to `claimed`; those that have moved since."""
    moved: list[CommitLog] = []
    while logs:
        ends = await asyncio.gather(*[_end(bus, log, lasts, done) for log in logs])
        now, rest, drafts = clock(), list[CommitLog](), []
        for log, end in zip(logs, ends):
            if end is None:
                continue
            if log.holds(end):
                claimed.append(log)
            elif is_ahead(_time(end), now):
                done.ahead.append((log, _time(end)))
            else:
                rest.append(log)
                drafts.append(log.draft(end, now))
        if not rest:
            return moved
        try:
            last = await bus.commit(drafts)
        except (Fenced, Unsettled) as e:
            lasts = await _leaders(bus, rest)
            behind = [log for log in rest if _sequence(lasts, log) != log.expected] if isinstance(e, Fenced) else []
            moved += behind
            logs = [log for log in rest if log not in behind]
            if not behind:  # nobody knows what became of it, and perhaps these very claims are there: look again
                await asyncio.sleep(AGAIN)
            continue
        for n, log in enumerate(rest):
            log.landed_claim(last - len(rest) + 1 + n)
        claimed.extend(rest)
        return moved
    return moved


async def _end(bus: Bus, log: CommitLog, lasts: dict[str, Message], done: Claims) -> Latest | None:
    """The end of a log; None where it cannot be read now. Of many logs a few may fail: the others need not wait for them."""
    try:
        return await end_of(bus, log.address, lasts.get(log.address.subject), log.newest, known=log.manifest)
    except BusError as e:
        if not e.retryable:
            raise
        _log.debug("the end of a log cannot be read yet", subject=log.address.subject, why=e.message)
        done.unread.append((log, e))
        return None


def is_ahead(time: float, now: float) -> bool:
    """Whether a partition whose last commit was at `time` waits until the clock has caught up with it."""
    return time > now + BEHIND


def waiting(times: Iterable[float], now: float) -> str | None:
    """Why partitions whose last commits were at these times wait; None where none does."""
    ahead = [time for time in times if is_ahead(time, now)]
    if not ahead:
        return None
    there, here = (datetime.fromtimestamp(t, UTC).isoformat(timespec="seconds") for t in (max(ahead), now))
    return f"{len(ahead)} partitions have come to {there}, and the server's clock says {here}: they wait for it"


def _time(end: Latest) -> float:
    return float(end.entry["time"]) if end.at else 0.0


def _sequence(lasts: dict[str, Message], log: CommitLog) -> int:
    found = lasts.get(log.address.subject)
    return found.sequence if found is not None else 0


async def _leaders(bus: Bus, logs: Sequence[CommitLog]) -> dict[str, Message]:
    """The last messages of these logs, asked of the leader."""
    found = await asyncio.gather(*[bus.last(log.address.stream, log.address.subject) for log in logs])
    return {message.subject: message for message in found if message is not None}


# -- requests that entries hold
async def send_what_was_not(bus: Bus, log: CommitLog, tables: Tables, now: float, unwanted: Collection[int] = ()) -> None:
    """Send the requests that the last entry holds, and that were not sent. The log is claimed, and was read back.

    They say the time that is left now; those whose time is over end by that. `now`: on the engine's clock. `unwanted`: calls
    that are not asked: they end by their time, too.

    Each is sent while its entry, or the claim of who sends it, is the last of its log: so nobody sends one who has lost the
    log, and what is found behind the entry is all that was sent. The owner sends those of an entry before it commits again.

    The server may take less in one message than when they were made: what is too large now is put in the object store.

    Raises BusError; Fenced where somebody else has claimed the log.
    """
    rows = tables.calls.rows
    asks = [
        _with_left(ask, row.deadline - now)
        for number, ask in log.asks.items()
        if number not in unwanted and (row := rows.get(number)) is not None and row.work == log.after and row.deadline > now
    ]
    log.asks = {}
    if not asks:
        return
    filters = sorted({ask.subject for ask in asks})
    info = await bus.stream(log.address.stream)
    last = log.claimed if info is None else max(log.claimed, info.last)  # an earlier try under this claim has sent some
    sent = {_id(message) for message in await bus.scan(log.address.stream, filters, start=log.after, stop=last)}
    left = [ask._replace(expect=log.claimed, of=log.address.subject) for ask in asks if _id(ask) not in sent]
    failed = [found for found in await _sent(bus, log.address.app, left) if not isinstance(found, Ack)]
    if any(isinstance(found, Unsettled) for found in failed):
        log.claimed = 0  # it may be stored yet: only another claim settles that
    if failed:
        raise failed[0]


async def _sent(bus: Bus, app: str, asks: Sequence[NewMessage]) -> Sequence[Ack | BusError]:
    """What became of each. One that no server would take has no outcome: its call ends when its time is over."""
    try:
        return await bus.publish_all([await payloads.checked_in(bus, app, ask) for ask in asks])
    except (DataError, PayloadTooLarge) as error:
        if len(asks) == 1:
            run = (asks[0].headers or {}).get(subjects.RUN, "")
            _log.error("the request of a call cannot be sent", subject=asks[0].subject, run=run, why=error.message)
            return []
    return [found for ask in asks for found in await _sent(bus, app, [ask])]


def _with_left(ask: NewMessage, left: float) -> NewMessage:
    """The same request; its time, which counts from when it is stored, has gone on since it was made, also that for a batch."""
    try:
        request = CallRequest.unpack(ask.data)
    except DecodeError:  # no engine wrote it, and a worker refuses it
        return ask
    gone = max(0.0, request.left - left)
    return ask._replace(data=replace(request, left=request.left - gone, batch=max(0.0, request.batch - gone)).pack())


def _id(message: Message | NewMessage) -> str:
    return (message.headers or {}).get(subjects.RECORD, "")
