"""Writes with a settled answer: it landed, it did not, or nobody knows (`Unsettled`)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

from dspex.bus.errors import BusError, NotAllowed, NotStored, StreamFull, Unreachable, Unsettled
from dspex.bus.nats import protocol
from dspex.bus.nats.connection import Connection
from dspex.bus.nats.failures import (
    ID_IN_PROCESS,
    IN_PROGRESS,
    NO_LEADER,
    TOO_MANY_BATCHES,
    answer_of,
    refused,
    what_a_server_says,
)
from dspex.bus.nats.pending import PendingRequest, RawReply
from dspex.bus.port import COMMIT_LIMIT, Ack, NewMessage

_FIRST_PAUSE: Final = 0.005  # seconds before the same write is asked again
_LONGEST_PAUSE: Final = 0.25
_LAST_WORDS: Final = 0.25  # seconds at the end of a timeout
_AGAIN: Final = 0.5  # seconds before a cluster is asked again whether there is something
_IN_DOUBT: Final = (IN_PROGRESS, ID_IN_PROCESS)
T = TypeVar("T")


def _settles(data: bytes, head: bytes) -> bool:
    """Whether an answer to a write decides it: the server's, and not "batch begun" or the reply of some subscriber."""
    return head.startswith(b"NATS/1.0 ") or (data[:1] == b"{" and (b'"seq":' in data or b'"error":' in data))


async def stream_of(connection: Connection, subject: str, timeout: float = 5.0) -> str | None:
    """The stream that captures the subject (or pattern). Raises Unreachable."""
    answer = await connection.api("STREAM.NAMES", {"subject": subject}, timeout=timeout)
    with what_a_server_says():
        names = answer.get("streams")
        return str(names[0]) if names else None


async def surely(connection: Connection, look: Callable[[], Awaitable[T | None]]) -> T | None:
    """What `look` finds. Where that is nothing, a cluster is asked again: a server that has just become the leader answers
    before it has taken in all that the one before it knew.
    """
    found = await look()
    if found is None and connection.client().server_info.get("cluster"):
        await asyncio.sleep(_AGAIN)
        found = await look()
    return found


async def publish(connection: Connection, draft: NewMessage, timeout: float) -> Ack:
    """`Bus.publish`."""
    more, subject = protocol.expectation(draft), draft.subject

    def render(reply: str) -> bytes:
        return protocol.message(subject, draft.data, draft.headers, reply=reply, more=more, limit=connection.max_payload)

    answer = await _written(connection, [draft], render, timeout)
    return Ack(str(answer["stream"]), int(answer["seq"]), bool(answer.get("duplicate")))


async def commit(connection: Connection, drafts: Sequence[NewMessage], timeout: float) -> int:
    """`Bus.commit`."""
    if not 1 <= len(drafts) <= COMMIT_LIMIT:
        raise BusError(f"a commit of {len(drafts)} messages: 1 to {COMMIT_LIMIT} are possible", fix="split it")
    if len(drafts) == 1:
        return (await publish(connection, drafts[0], timeout)).sequence
    _check_expectations(drafts)

    def render(reply: str) -> bytes:
        return protocol.batch(
            drafts,
            id=protocol.OUR_BATCH + secrets.token_hex(8),  # who could guess it could end the batch, while it is open
            reply=reply,
            limit=connection.max_payload,
        )

    answer = await _written(connection, drafts, render, timeout)
    if answer.get("count") != len(drafts):
        raise Unsettled(f"{len(drafts)} messages were sent, and the server says it stored {answer.get('count')}")
    return int(answer["seq"])


def _check_expectations(drafts: Sequence[NewMessage]) -> None:
    # The server would answer "in progress, ask again", for ever.
    seen: set[str] = set()
    for draft in drafts:
        if draft.expect is not None and draft.subject in seen:
            raise BusError(f"a draft for {draft.subject} expects, and is not the first of its subject", fix="put it first")
        seen.add(draft.subject)


async def _written(
    connection: Connection, drafts: Sequence[NewMessage], render: Callable[[str], bytes], timeout: float
) -> dict[str, Any]:
    """Send what `render(reply)` gives until the server decides about it; the acknowledgement.

    Three refusals mean "ask again": nothing was stored by this try, and the reason passes by itself.
    """
    clock = asyncio.get_running_loop().time
    end, pause = clock() + timeout, _FIRST_PAUSE
    while True:
        answer = await _answer(connection, drafts, render, end - clock())
        error = answer.get("error")
        if error is None:
            return answer
        number = error.get("err_code")
        if number not in (*_IN_DOUBT, TOO_MANY_BATCHES):
            raise refused(error, drafts[-1].subject)
        if clock() + 2 * pause >= end:  # another try would have no time for its answer, and end as unsettled
            raise (StreamFull if number == TOO_MANY_BATCHES else Unsettled)(
                f"{error.get('description', number)} for {timeout:g} s"
            )
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


async def _answer(
    connection: Connection, drafts: Sequence[NewMessage], render: Callable[[str], bytes], timeout: float
) -> dict[str, Any]:
    """What the server answers to one try. Raises Unreachable (nothing was sent), Unsettled, NotStored, NotAllowed."""
    client = connection.client()
    with connection.pending_request({d.subject for d in drafts}, _settles) as q:
        client.put(render(q.reply))
        try:
            answers = await _settled(connection, q, drafts[0].subject, timeout)
        except TimeoutError as e:
            connection.isolation.suspect()
            raise Unsettled(f"no answer from the server in {timeout:.3g} s") from e
        except Unreachable as e:
            raise Unsettled(e.message) from e
    # The first that says something: behind "too many batches" comes "incomplete" for the last message.
    data, head = next(a for a in answers if _settles(*a))
    if protocol.headers(head).get("Status") == "503":
        connection.isolation.suspect()
        await _need_stream(connection, drafts[0].subject, timeout)
        raise Unreachable(f"no leader of the stream answers for {drafts[0].subject}")
    try:
        answer = answer_of(data)
    except Unreachable as e:
        raise Unsettled(e.message) from e
    if "error" not in answer and not (isinstance(answer.get("seq"), int) and isinstance(answer.get("stream"), str)):
        raise Unsettled("what came as an answer to a write is none of the server's")
    if answer.get("error", {}).get("err_code") in NO_LEADER:
        connection.isolation.suspect()
    return answer


async def _settled(connection: Connection, pending: PendingRequest, subject: str, timeout: float) -> list[RawReply]:
    """The answers to a write. Shortly before the time is over, ask whether there is a stream at all: where a subscriber
    hears the subject and no stream does, nobody answers."""
    last_words = min(_LAST_WORDS, timeout / 4)
    try:
        return await pending.settled(timeout - last_words)
    except TimeoutError:
        await _need_stream(connection, subject, last_words)
        return await pending.settled(0)


async def _need_stream(connection: Connection, subject: str, timeout: float) -> None:
    """Raise NotStored, if it is certain that no stream captures the subject."""
    try:
        stream = await surely(connection, lambda: stream_of(connection, subject, timeout))
    except BusError:
        return  # cannot tell: the caller says what it knows
    if stream is None:
        raise NotStored(f"no stream captures {subject}")


# -- many in flight ----------------------------------------------------------------------------------------------------
async def publish_all(connection: Connection, drafts: Sequence[NewMessage], timeout: float) -> list[Ack | BusError]:
    """`Bus.publish_all`.

    An atomic batch would be as fast, but one duplicate id in it and the server refuses all of it. Each message has an address
    of its own for its answer, since a cluster answers a duplicate at once, and the others when they are replicated.
    """
    waiting = {b"%d" % i: i for i in range(len(drafts))}
    answers: list[RawReply | None] = [None] * len(drafts)

    def all_answered(data: bytes, head: bytes) -> bool:
        if q.place in waiting and _settles(data, head):  # others may publish to our inbox, too
            answers[waiting.pop(q.place)] = data, head
        return not waiting

    with connection.pending_request({d.subject for d in drafts}, all_answered) as q:
        parts = [_rendered(connection, draft, f"{q.reply}-{i}") for i, draft in enumerate(drafts)]
        if not parts:
            return []
        connection.put(b"".join(parts))
        try:
            await q.settled(timeout)
            unanswered: BusError = Unsettled("no answer")
        except TimeoutError:
            connection.isolation.suspect()
            unanswered = Unsettled(f"no answer from the server in {timeout:.3g} s")
        except NotAllowed as e:
            unanswered = e
        except Unreachable as e:
            unanswered = Unsettled(e.message)
    found = [_result(answer, draft) if answer else unanswered for answer, draft in zip(answers, drafts)]
    return await _asked_again(connection, drafts, found, timeout) if None in found else cast(list[Ack | BusError], found)


def _rendered(connection: Connection, draft: NewMessage, reply: str) -> bytes:
    more = "" if draft.expect is None else protocol.expectation(draft)
    return protocol.message(draft.subject, draft.data, draft.headers, reply=reply, more=more, limit=connection.max_payload)


def _result(answer: RawReply, draft: NewMessage) -> Ack | BusError | None:
    """What an answer says; None where nothing was stored, and the same message is to be sent again."""
    data, head = answer
    if head and protocol.headers(head).get("Status") == "503":
        return None
    try:
        said = answer_of(data)
    except Unreachable as e:
        return Unsettled(e.message)
    error, stream, sequence = said.get("error"), said.get("stream"), said.get("seq")
    if error is not None:
        return None if error.get("err_code") in _IN_DOUBT else refused(error, draft.subject)
    if not (isinstance(stream, str) and isinstance(sequence, int)):
        return Unsettled("what came as an answer to a write is none of the server's")
    return Ack(stream, sequence, bool(said.get("duplicate")))


async def _asked_again(
    connection: Connection, drafts: Sequence[NewMessage], found: Sequence[Ack | BusError | None], timeout: float
) -> list[Ack | BusError]:
    """The same, with those sent again, one by one, that the server did not decide about. The first to fail says it of all."""
    result: list[Ack | BusError] = []
    failure: BusError | None = None
    for draft, one in zip(drafts, found, strict=True):
        if one is None and failure is None:
            try:
                one = await publish(connection, draft, timeout)
            except BusError as e:
                one = failure = e
        result.append(one or failure or Unsettled("no answer"))
    return result
