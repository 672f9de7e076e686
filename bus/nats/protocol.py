"""The NATS client protocol: bytes of what we send, messages out of what we get.

nats-py can do both, but pays for each message with two regular expressions, three dicts, a Msg object, a queue and a task
switch: 63 thousand messages a second here, against several times that with the functions below (benchmarks/bus.py). They
are also stricter: a header value with a line break is refused, where nats-py would silently change it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

from dspex.bus.errors import DataError, PayloadTooLarge
from dspex.bus.port import NewMessage

WireRoute = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes one message: subject, reply (b"" for none), data, header block (b"" for none). Called in the read loop."""

RESERVE: Final = 192
"""Bytes of each message kept back for the header lines of a commit: what fits in a publish fits in a batch."""
EXPECT: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECT_OF: Final = f"{EXPECT}-Subject"
NEW_CONSUMER: Final = "$JS.API.CONSUMER.CREATE."  # behind it come stream, name and filter, which may have wildcards
OUR_BATCH: Final = "dspex"
"""How the ids of our batches begin."""
_OUR_BATCH_LINE: Final = f"\r\nNats-Batch-Id: {OUR_BATCH}".encode()
_FIRST_COUNTS: Final = ("nats-", "dspex-", "content-type", "traceparent")
_FOR_THE_SERVER: Final = ("Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit", EXPECT, EXPECT_OF)
Headers = Mapping[str, str]
_FOR_IT_ALONE: Final = re.compile(
    rb"NATS/1\.0\r\n(?:(?:%b): [^\r\n]*\r\n)+\r\n" % "|".join(_FOR_THE_SERVER).encode()
).fullmatch  # a message of a batch that has no other headers, as nearly all entries of logs
NO_HEADERS: Final[Headers] = {}

_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_PATTERN = re.compile(r"[^\s.>]+(\.[^\s.>]+)*(\.>)?|>")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # token characters of RFC 7230


# -- what we send ------------------------------------------------------------------------------------------------
@lru_cache(4096)
def checked_subject(subject: str) -> str:
    """`subject`, if a message can go there. A space or line break in it would inject a command. Raises DataError."""
    if not _SUBJECT.fullmatch(subject) and not (subject.startswith(NEW_CONSUMER) and _PATTERN.fullmatch(subject)):
        raise DataError(f"{subject!r} is not a subject to publish to", fix="no spaces, wildcards or empty tokens")
    return subject


@lru_cache(4096)
def checked_pattern(pattern: str) -> str:
    """`pattern`, if it can be subscribed to. Raises DataError."""
    if not _PATTERN.fullmatch(pattern):
        raise DataError(f"{pattern!r} is not a subject or a wildcard", fix="no spaces or empty tokens; > only at the end")
    return pattern


@lru_cache(1024)
def _prefix(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} is not a header name", fix="use letters, digits and - only")
    return f"{name}: "


def _header_text(headers: Mapping[str, str] | None, more: str) -> str:
    text = "".join([_prefix(name) + value + "\r\n" for name, value in headers.items()]) if headers else ""
    lines = len(headers) if headers else 0
    if text.count("\n") != lines or text.count("\r") != lines:
        raise DataError("a header value has a line break", fix="put it in the data, or encode it")
    return f"NATS/1.0\r\n{text}{more}\r\n"


def header_block(headers: Mapping[str, str] | None, more: str = "") -> bytes:
    """The header block, with `more` finished lines at its end. Raises DataError for a value with a line break."""
    try:
        return _header_text(headers, more).encode()
    except UnicodeEncodeError as e:
        raise DataError(f"a header value is not text: {e.reason}", fix="put it in the data, or encode it") from e


def expectation(draft: NewMessage) -> str:
    """The header lines of `draft.expect`; "" where it expects nothing."""
    if draft.expect is None:
        return ""
    of = f"{EXPECT_OF}: {checked_subject(draft.of)}\r\n" if draft.of is not None else ""
    return f"{EXPECT}: {draft.expect}\r\n{of}"


def _check_size(subject: str, size: int, limit: int) -> None:
    # Over the limit the server closes the connection, and every other message in flight fails with this one.
    if size > limit:
        raise PayloadTooLarge(f"{size} bytes for {subject}: the server takes {limit} in one message")


def message(
    subject: str, data: bytes, headers: Mapping[str, str] | None, *, reply: str = "", more: str = "", limit: int
) -> bytes:
    """One message as sent: PUB, or HPUB with headers. Raises PayloadTooLarge, DataError.

    `more`: our own header lines, at most RESERVE bytes; they do not count for `limit`.
    """
    checked_subject(subject)
    if not headers and not more:
        _check_size(subject, len(data), limit)
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(data), data)
    text = _header_text(headers, more)
    if text.isascii():  # then its length in bytes is known before it is encoded, and all of it is encoded at once
        size, total = len(text), len(text) + len(data)
        _check_size(subject, (size - len(more) if headers else 0) + len(data), limit)
        return b"%b%b\r\n" % (f"HPUB {subject} {reply} {size} {total}\r\n{text}".encode(), data)
    head = header_block(headers, more)
    _check_size(subject, (len(head) - len(more) if headers else 0) + len(data), limit)
    return f"HPUB {subject} {reply} {len(head)} {len(head) + len(data)}\r\n".encode() + head + data + b"\r\n"


def batch(drafts: Sequence[NewMessage], *, id: str, reply: str, limit: int) -> bytes:
    """An atomic batch (ADR-50) as sent, in one piece. Raises PayloadTooLarge, DataError; then nothing is sent.

    The first and the last message ask for a reply: the first to hear early that the batch is refused, the last for the
    result. A reply for each would cost the server as many messages as the batch has.
    """
    parts: list[bytes] = []
    last = len(drafts)
    for n, draft in enumerate(drafts, 1):
        more = f"Nats-Batch-Id: {id}\r\nNats-Batch-Sequence: {n}\r\n"
        if draft.expect is not None:
            more += expectation(draft)
        if n == last:
            more += "Nats-Batch-Commit: 1\r\n"
        answer = reply if n in (1, last) else ""
        parts.append(message(draft.subject, draft.data, draft.headers, reply=answer, more=more, limit=limit))
    return b"".join(parts)


# -- what we get -------------------------------------------------------------------------------------------------
def text(word: bytes) -> str:
    """A subject as text. The server takes any bytes, and one that is no UTF-8 must not end the connection of its readers."""
    return word.decode("utf-8", "replace")


def headers(block: bytes) -> Headers:
    """The headers of a message; a status line (`NATS/1.0 404 No Messages`) gives `Status` and `Description`.

    A value is taken as it is behind ": ", so that what we wrote comes back unchanged, spaces and all. What only told the
    server how to store the message is left out: passed on with the event, it would make the next write something else.
    """
    if not block or _FOR_IT_ALONE(block):
        return NO_HEADERS
    lines = block.decode("utf-8", "replace").split("\r\n")
    try:
        found = dict([line.split(": ", 1) for line in lines[1:-2]])
    except ValueError:  # a client that writes "name:value"
        found = {name: value.removeprefix(" ") for name, _, value in (line.partition(":") for line in lines[1:-2])}
    if len(found) < len(lines) - 3:
        found = _with_repeated(lines[1:-2])
    if "Nats-Batch-Id" in found or EXPECT in found:
        for name in _FOR_THE_SERVER:
            found.pop(name, None)
    if len(lines[0]) > 8:
        found["Status"], _, description = lines[0][9:].partition(" ")
        if description:
            found["Description"] = description
    return found


def _with_repeated(lines: Sequence[str]) -> dict[str, str]:
    """Headers of which some come several times: their values, joined by ", " as in HTTP, so that none is lost.

    Of those that dspex and the server read only the first counts, as the server has it.
    """
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name not in found:
            found[name] = value
        elif not name.lower().startswith(_FIRST_COUNTS):
            found[name] = f"{found[name]}, {value}"
    return found


def in_batch(block: bytes) -> bool:
    """Whether a message was stored in a batch of ours. The server keeps the id of the batch with each message of it, and
    whoever copies that header with the others makes a batch, which the server refuses without its other messages.
    """
    return _OUR_BATCH_LINE in block


class WireParser:
    """Cuts a stream of bytes into messages, and gives each to the route of its subscription."""

    def __init__(self, routes: Mapping[bytes, WireRoute]) -> None:
        self._routes = routes
        self._parts: list[bytes] = []  # the beginning of a message whose rest has not come
        self._missing = 0  # bytes that it needs at least

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Route the messages in `chunk`; the other lines (PING, PONG, INFO, +OK, -ERR) are yielded.

        All in the order of the wire: what the server complains about is known before the answer that it then gives.
        """
        self._parts.append(chunk)
        if len(chunk) < self._missing:  # joined at each chunk, a message of 64 MiB would be copied a thousand times
            self._missing -= len(chunk)
            return
        data = b"".join(self._parts) if len(self._parts) > 1 else chunk
        position, self._missing = yield from self._cut(data)
        self._parts = [data[position:]] if position < len(data) else []

    def _cut(self, data: bytes) -> Generator[bytes, None, tuple[int, int]]:
        routes, find, position = self._routes, data.find, 0
        while (end := find(b"\r\n", position)) >= 0:
            line = data[position:end]
            if line.startswith((b"HMSG ", b"MSG ")):
                words = line.split(b" ")  # a subject may hold other white space
                start = end + 2
                stop = start + int(words[-1])
                if stop + 2 > len(data):
                    return position, stop + 2 - len(data)
                route = routes.get(words[2])
                if route is not None:
                    if line[0] == 72:  # HMSG subject sid [reply] headers total
                        middle = start + int(words[-2])
                        reply = words[3] if len(words) == 6 else b""
                        route(words[1], reply, data[middle:stop], data[start:middle])
                    else:  # MSG subject sid [reply] total
                        route(words[1], words[3] if len(words) == 5 else b"", data[start:stop], b"")
                position = stop + 2
            else:
                yield line
                position = end + 2
        return position, 0
