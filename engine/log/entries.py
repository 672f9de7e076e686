"""What lies in the commit log of a stage partition: claims and commits, as MessagePack.

    claim    {v, kind, time, epoch, owner, manifest, build, nonce, after, base, older}
    commit   {v, kind, time, claim, after, covers, digest, taken, read?, tables | pieces, whole?, base, older, snapshot?}

Each ends with `sum`, the CRC-32 of its bytes before that (ADR-0030); those of before have none. `read` has one of
each event that was taken of the source, see `sum_of`; `whole` is that of its pieces together, where they are in clear text.

Who owns the partition, and with what it runs, is said by the claim; a commit names its claim by sequence. An entry with a
`snapshot` says it again, so that an owner who stays for months does not keep its whole log: see `facts`. `base` and `older` are
the entries that name the last two snapshots. `after` is what an entry follows, so that a copy of one follows nothing: the entry
before a commit, the commit before a claim.

Whoever may publish to the log can store anything there. What is not an entry is passed over by all who read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol, cast
from zlib import crc32

import msgpack

from dspex.bus import subjects
from dspex.bus.errors import BusError
from dspex.bus.message import Message
from dspex.bus.port import COMMIT_LIMIT, NewMessage

VERSION = 3
_EACH: dict[str, type | tuple[type, ...]] = {"time": (float, int), "base": int, "older": int}
_FACTS: dict[str, type | tuple[type, ...]] = {"epoch": int, "owner": str, "manifest": int, "build": dict}
_KINDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "claim": {**_EACH, **_FACTS, "nonce": str, "after": int},
    "commit": {**_EACH, "claim": int, "after": int, "covers": int, "digest": bytes, "taken": tuple},
}
_NUMBERS = ("claim", "after", "base", "older", "covers", "pieces", "epoch", "manifest")
_OF_A_REQUEST = {subjects.RUN, subjects.CAUSE, subjects.RECORD, subjects.SESSION}  # its headers
_SUM: Final = 4  # bytes of one
_END: Final = b"\xa3sum\xc4\x04"  # what stands before that of an entry
LATEST = 1e11  # seconds since the epoch: a time that no clock says


class LogAddress(NamedTuple):
    """The log of one partition: application, stream, subject, that of what an entry does not hold, and of its snapshots."""

    app: str
    stream: str
    subject: str
    pieces: str
    snapshots: str

    @classmethod
    def of(cls, app: str, topology: str, stage: str, partition: int) -> LogAddress:
        subject = subjects.log(app, topology, stage, partition)
        pieces, snapshots = subjects.pieces(app, topology, stage, partition), subjects.snapshot(app, topology, stage, partition)
        return cls(app, subjects.stream(app), subject, pieces, snapshots)


class Snapshot(NamedTuple):
    """A snapshot that is stored: of the tables as of entry `at`, in the messages from `first` to `last`."""

    at: int
    first: int
    last: int
    sha256: bytes
    size: int


class ClaimFacts(NamedTuple):
    """What a claim says of its owner. `build`: what the same arrivals give the same messages with."""

    epoch: int
    owner: str
    manifest: int
    build: Mapping[str, str]


def packed(plain: object) -> bytes:
    """Plain data as MessagePack."""
    return cast("bytes", msgpack.packb(plain))


def summed(entry: Mapping[str, Any]) -> bytes:
    """An entry as it is stored: its last bytes are the sum of those before."""
    whole = packed({**entry, "sum": bytes(_SUM)})[:-_SUM]
    return whole + crc32(whole).to_bytes(_SUM)


sum_of: Final = crc32
"""That of an event of a source, of its data and its sequence, by which it is told later whether it is what was taken."""


def sum_of_pieces(whole: bytes) -> bytes:
    """That of the pieces of an entry, together."""
    return crc32(whole).to_bytes(_SUM)


def was_read(entry: Mapping[str, Any], sequence: int, event: bytes) -> bool:
    """Whether an event of the source is what the commit took there; True for one of before there were sums."""
    sums = entry.get("read")
    if not isinstance(sums, bytes):
        return True
    at = sums.find(mine := sum_of(event, sequence).to_bytes(_SUM))  # a commit may have taken thousands, and each is asked for
    while at % _SUM and at > 0:  # the end of one and the begin of the next
        at = sums.find(mine, at + 1)
    return at >= 0


def plain(data: bytes) -> Any:
    """Plain data that `packed` wrote; sequences are tuples. Raises ValueError."""
    try:
        return msgpack.unpackb(data, strict_map_key=False, use_list=False)
    except TypeError as e:  # a map as the key of a map
        raise ValueError(str(e)) from e


def readable(data: bytes) -> Mapping[str, Any] | None:
    """A log entry without its sum; None for what is not one, or is damaged, and for one of another version."""
    entry = _map(data)
    if entry.get("v") != VERSION or is_damaged_entry(data):
        return None
    entry.pop("sum", None)
    if (kind := _KINDS.get(str(entry.get("kind")))) is None or not _is_sound(entry, kind):
        return None
    return entry if "snapshot" not in entry or _names_snapshot(entry) else None


def is_damaged_entry(data: bytes) -> bool:
    """Whether what lies in a log was stored as an entry, and is not what was stored. It may have no form any more."""
    if (end := data[-_SUM - len(_END) : -_SUM]) == _END:
        return data[-_SUM:] != crc32(data[:-_SUM]).to_bytes(_SUM)
    return sum(a == b for a, b in zip(end, _END)) == len(_END) - 1


def is_as_stored(data: bytes) -> bool:
    """Whether what lies in a log was stored as an entry, as it is there: where it is none here, a later version wrote it."""
    return data[-_SUM - len(_END) : -_SUM] == _END and not is_damaged_entry(data)


def lacks_pieces(data: bytes, entry: Mapping[str, Any], changed: Mapping[str, Any] | None) -> bool:
    """Whether an engine has written an entry, and pieces of it are gone or not what was stored. `changed`: what they say."""
    return changed is None and "pieces" in entry and is_as_stored(data)


def _is_sound(entry: Mapping[str, Any], kind: Mapping[str, type | tuple[type, ...]]) -> bool:
    """Whether an entry has what its kind has, its numbers can be, and a commit says what it changes in one way."""
    get = entry.get
    if not all(map(isinstance, map(get, kind), kind.values())) or not 0 <= entry["time"] < LATEST:
        return False
    for name in _NUMBERS:
        number = get(name, 0)
        if type(number) is not int or not 0 <= number < 1 << 63:
            return False
    if entry["kind"] == "claim":
        return True
    asks = get("asks", ())
    if not isinstance(asks, tuple) or (asks and len(requests_in(entry)) != len(asks)):
        return False
    once = ("pieces" in entry) != isinstance(entry.get("tables"), dict)
    return once and bool(entry.get("pieces", 0) <= entry["covers"] <= COMMIT_LIMIT)


def requests_in(entry: Mapping[str, Any]) -> dict[int, NewMessage]:
    """The requests that an entry holds, by the numbers of their calls, without what is none: anybody may have written it."""
    asks, found = entry.get("asks"), dict[int, NewMessage]()
    for ask in asks if isinstance(asks, tuple) else ():
        if isinstance(ask, tuple) and len(ask) == 4 and [*map(type, ask)] == [int, str, bytes, dict]:
            request = NewMessage(*ask[1:])
            if is_request(request):
                found[ask[0]] = request
    return found


class _Written(Protocol):
    @property
    def subject(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str] | None: ...
    @property
    def data(self) -> bytes: ...


def digest_of(messages: Iterable[_Written]) -> bytes:
    """The digest that an entry has of the messages of its commit. Each is hashed at once with the others: one by one costs
    twice as much.
    """
    heads: list[str] = []
    bodies: list[bytes] = []
    for message in messages:
        heads.append(message.subject)
        if message.headers:
            heads += message.headers
            heads += message.headers.values()
        heads.append(str(len(message.data)))
        bodies.append(message.data)
    h = blake2b("\n".join(heads).encode(), digest_size=16)
    h.update(b"".join(bodies))
    return h.digest()


def is_changed(entry: Mapping[str, Any], stored: Sequence[Message]) -> bool:
    """Whether the messages of a commit are not what it stored, as its entry says. `stored`: they, with their bodies, as far as
    they are there. Of which one is gone, or was sealed, nothing is told: what is sealed opens only as it was.
    """
    if "asks" in entry:
        return bool(digest_of(requests_in(entry).values()) != entry["digest"])
    if len(stored) < entry["covers"] - entry.get("pieces", 0) or any(map(is_elsewhere, stored)):
        return False
    return bool(digest_of(m._replace(headers=_own(m.headers)) for m in stored) != entry["digest"])


def is_elsewhere(message: Message) -> bool:
    """Whether a message has not its own body."""
    return subjects.SEALED in message.headers or (subjects.CLAIM_CHECK in message.headers and not message.data)


def _own(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as they were before the body was put into the object store."""
    return {name: value for name, value in headers.items() if name != subjects.CLAIM_CHECK}


def is_request(message: NewMessage) -> bool:
    """Whether a message can be a request that an entry holds: one that no server would take must not be in an entry either."""
    headers: Mapping[Any, Any] = message.headers or {}  # of what lies in a log they may be anything
    named = headers.keys() <= _OF_A_REQUEST and all(isinstance(v, str) and not set("\r\n") & set(v) for v in headers.values())
    return named and subjects.is_work(message.subject)


def _map(data: bytes) -> dict[str, Any]:
    try:
        entry = plain(data)
    except ValueError:
        return {}
    return cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}


def _names_snapshot(entry: Mapping[str, Any]) -> bool:
    row = entry["snapshot"]
    kinds = (int, int, int, bytes, int)
    sound = isinstance(row, tuple) and len(row) == len(kinds) and all(map(isinstance, row, kinds))
    return sound and all(isinstance(entry.get(name), wanted) for name, wanted in _FACTS.items())


def version(data: bytes) -> int | None:
    """The version of the format that an entry is in; None for what is no entry of any version."""
    found = _map(data).get("v")
    return found if type(found) is int else None


def unpack(data: bytes) -> Mapping[str, Any]:
    """A log entry. Raises BusError for what is not one."""
    entry = readable(data)
    if entry is None:
        raise other_version(version(data)) if version(data) not in (None, VERSION) else damaged("a log entry")
    return entry


def other_version(found: int | None) -> BusError:
    """The error for a log in another format."""
    how = "an older" if (found or 0) < VERSION else "a newer"
    fix = "use another application name, or delete the application's streams and buckets and begin anew"
    if (found or 0) > VERSION:
        fix = "run that version, or use another application name"
    return BusError(
        f"the commit log was written by {how} version of dspex (format {found}, not {VERSION})", code="DX411", fix=fix
    )


def from_later(sequence: int, what: str = "entry") -> BusError:
    """The error for an entry, or a snapshot, that says what this version of dspex does not know."""
    why = f"the commit log was written by a newer version of dspex: this one does not know what the {what} at {sequence} says"
    return BusError(why, code="DX411", fix="run that version, or use another application name")


def damaged(what: str) -> BusError:
    """The error for what cannot be read and nothing can replace."""
    return BusError(f"{what} is damaged", code="DX411", fix="restore the stream from a backup")


def without_begin(subject: str) -> BusError:
    """The error for a log with entries of which none can be believed: what they follow is not there any more."""
    return BusError(
        f"{subject} has commits, and no claim before them that can be believed: messages or manifests were removed",
        code="DX411",
        fix="restore the stream and the bucket from a backup; or begin anew without what was done: dspex delete",
    )


def bases(sequence: int, entry: Mapping[str, Any]) -> tuple[int, int]:
    """The entries that name the latest snapshot and the one before, as of an entry; 0 for none."""
    base: int = entry["base"]
    return (sequence, base) if "snapshot" in entry else (base, entry["older"])


def facts(entry: Mapping[str, Any]) -> ClaimFacts:
    """What a claim says of its owner, or an entry that names a snapshot."""
    return ClaimFacts(entry["epoch"], entry["owner"], entry["manifest"], entry["build"])
