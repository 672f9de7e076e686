"""The port: what dspex needs of a bus. Nothing else says it.

Two buses implement it: `dspex.bus.nats` (JetStream) and `dspex.bus.memory.server` (same promises, in process). Both pass
`tests/bus/contract`. The port is as small as the engine's needs, not as wide as NATS: two
implementations of a wide port would drift apart.

A write ends in one of three ways: it was stored (you get its sequence), it was not stored (you get the reason), or that is
unknown (`Unsettled`). Whoever takes the third for the second and writes again makes duplicates.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from dspex.bus.errors import BusError
from dspex.bus.message import Message

COMMIT_LIMIT = 1000  # messages in one atomic batch (ADR-50, nats-server 2.12)
WINDOW = 500  # messages that `publish_all` has in flight; a server refuses more than 10,000 that wait on one stream
WINDOW_BYTES = 4 << 20
MOST_ONCE = 1024  # bytes of a message, headers too, in a stream that takes one of each subject
PAGE_MESSAGES = 500
PAGE_BYTES = 16 << 20  # of one page, about
OLDEST_SERVER = (2, 12)  # the first nats-server with atomic batches


class NewMessage(NamedTuple):
    """A message to be written.

    Attributes:
        expect: the sequence that must be the last of its subject (0: none yet), or of the subject `of`.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str] | None = None
    expect: int | None = None
    of: str | None = None


class Ack(NamedTuple):
    """A stored message. `duplicate`: its id was stored before, and nothing was added."""

    stream: str
    sequence: int
    duplicate: bool = False


@dataclass(frozen=True)
class StreamConfig:
    """A stream as dspex makes it: limits retention, discard new, atomic batches, direct get.

    It has no rollup, no message schedules and no message TTL: whoever may write could remove what others wrote.

    Attributes:
        duplicate_window: seconds in which an id is not stored twice.
        max_bytes: -1 for no limit; None for 80 % of what the server lets a stream reserve when it is made, at most 16 GiB.
        max_age: seconds after which messages expire; 0: never.
        max_consumers: -1 for what the server allows.
        once: each subject takes one message, and another one only when that was deleted: nobody who may write can replace it.
            Of MOST_ONCE bytes at most: nor can they fill the disk with a few.
        note: what whoever looks at the stream reads there. One that is there keeps its own, unless that is `instead_of`.
        copies: other streams, and the subjects of which it gets a copy of every message, in the other's order: also of those
            that are stored there before. The server sees to it, at its own time.
    """

    name: str
    subjects: Sequence[str]
    replicas: int = 1
    duplicate_window: float = 120.0
    max_bytes: int | None = -1
    max_messages: int = -1
    max_age: float = 0.0
    max_consumers: int = -1
    once: bool = False
    note: str = ""
    instead_of: str = ""
    copies: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamInfo:
    """A stream as it is.

    Attributes:
        created: seconds since the epoch; with first and last it shows a trimmed or re-created stream.
        own: made by dspex.
        retention: "limits"; or "workqueue" or "interest", which remove messages that somebody has read.
        max_bytes, max_messages: -1 for no limit. max_age: seconds after which messages expire; 0: never.
        trims: it removes the oldest messages where a limit is reached, and does not refuse new ones.
        now: what the clock of its leader said, in seconds since the epoch.
        note, copies: see StreamConfig.
    """

    name: str
    subjects: tuple[str, ...]
    created: float
    first: int
    last: int
    messages: int
    bytes: int
    replicas: int = 1
    own: bool = True
    retention: str = "limits"
    max_bytes: int = -1
    max_messages: int = -1
    max_age: float = 0.0
    trims: bool = False
    now: float = field(default=0.0, compare=False)
    note: str = ""
    copies: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Reader(Protocol):
    """Messages of some subjects of a stream in order, each exactly once, from a position on, for ever."""

    async def read(self, limit: int) -> list[Message]:
        """1 to `limit` messages in stream order, as soon as there is one.

        Never a gap: the reader starts again behind its last message when the wire lost one. Raises `Unreachable` when
        closed meanwhile, or when the stream is not the one that it began with: made anew, or rolled back to an older copy;
        `NotAllowed` when it may not read. It waits while an error may pass by itself.
        """
        ...

    async def close(self) -> None: ...


class Delivery(Protocol):
    """One piece of work, held by this process until it is settled or `ack_wait` passes without a sign of life."""

    message: Message
    delivered: int  # 1 at first; counted by the bus

    @property
    def token(self) -> str:
        """Names it to another process, which `Bus.held` makes it of: then that one holds it, and this one leaves it alone."""
        ...

    async def ack(self) -> None:
        """Done: it is not delivered again. Returns once the bus has it (double ack)."""
        ...

    async def nak(self, delay: float = 0.0) -> None:
        """Not done: deliver it again, to anyone, after `delay` seconds."""
        ...

    async def in_progress(self) -> None:
        """A sign of life: starts `ack_wait` anew."""
        ...


class WorkQueue(Protocol):
    """A durable consumer that many processes share; each delivery goes to one of them.

    Attributes:
        dry: nothing waits in it, as far as it has told this process.
    """

    @property
    def dry(self) -> bool: ...

    async def next(self) -> Delivery:
        """The next delivery. Asks the bus for no more than `free()` at a time, so nothing waits in a local queue.

        Raises `NotStored` when the consumer is gone.
        """
        ...

    def ask_for_more(self) -> None:
        """`free()` may have grown: ask the bus now, instead of at the next look."""
        ...

    async def close(self) -> None:
        """Stop pulling. What was delivered and not settled is delivered again after `ack_wait`."""
        ...


class Subscription(Protocol):
    async def close(self) -> None: ...


class Inbox(Protocol):
    """Where the answers to a question come.

    Attributes:
        subject: its own; what is sent carries it as `reply`.
    """

    subject: str

    def close(self) -> None:
        """No more of them: those that still come are dropped."""
        ...


class Bucket(Protocol):
    """Small values under keys, with revisions (compare and set)."""

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """Value and revision; None where there is none."""
        ...

    async def put(self, key: str, value: bytes, *, revision: int | None = None) -> int:
        """Write; with `revision` only if that is the latest (0: the key must not exist), else `Fenced`."""
        ...

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """Remove a key; with `revision` only where nothing was written under it since."""
        ...

    async def items(self, prefix: str = "", *, after: int = 0) -> dict[str, tuple[bytes, int]]:
        """All keys that are `prefix` or start with `prefix.`, with value and revision. `after`: put behind that revision,
        which costs a question for each.
        """
        ...

    async def revision(self) -> int:
        """That of the last value that was put, under whatever key; 0 where none was."""
        ...

    async def expire(self, prefix: str, before: float) -> None:
        """Remove the keys that start with `prefix.`, whose value was put before then (seconds since the epoch)."""
        ...

    async def latest(self, prefix: str) -> bytes | None:
        """The value that was written last under a key of one word more than `prefix`, as the leader has it."""
        ...

    async def time(self) -> float:
        """What the clock of its leader says, in seconds since the epoch."""
        ...

    async def keys(self) -> list[str]:
        """All keys, without their values."""
        ...


class Objects(Protocol):
    """Payloads by content: the name is the SHA-256 of the bytes, so the same bytes are stored once."""

    async def put(self, data: bytes) -> str:
        """Store the bytes, or touch them where they are stored already: what was put just now is not removed as unused."""
        ...

    async def get(self, name: str) -> bytes | None:
        """The bytes; None where there are none. Raises `DataError` where what is stored has another hash."""
        ...

    async def listing(self) -> dict[str, float]:
        """When each object was put last, in seconds since the epoch, by its name."""
        ...

    async def remove(self, name: str, put: float) -> bool:
        """Remove an object, unless it was put again since `put`, which is what `listing` said. Whether it was removed."""
        ...


class Sealing(Protocol):
    """Makes of messages what only who has the key can read, and back again. See bus/serving/keys/keyring.py.

    Attributes:
        app: the application whose payloads it seals.
    """

    app: str

    async def verify(self) -> None:
        """Raise ConfigError where there is no key, or another one than what is stored was sealed with."""
        ...

    async def establish(self, replicas: int) -> None:
        """Make what it needs on the server. Raises as `verify`."""
        ...

    async def prepare(self, messages: Iterable[NewMessage]) -> None:
        """Have at hand what it takes to seal these, so that it is asked for together and not one after another."""
        ...

    async def sealed(self, message: NewMessage) -> NewMessage:
        """The message as it is stored."""
        ...

    async def opened(self, message: Message) -> Message | None:
        """The message as it was; None where nobody can read it any more."""
        ...

    async def at_hand(self, messages: Sequence[Message]) -> None:
        """Ask together for what it takes to open these, and not one after another."""
        ...

    async def opened_early(self, messages: Sequence[Message]) -> list[Message]:
        """The same messages, those opened that can be: what it takes is asked for together, and the rest is left as it is."""
        ...

    async def forget(self, session: str) -> int:
        """Make what belongs to a session unreadable for good; how many keys it had."""
        ...


class Bus(Protocol):
    """One connection to a bus. All methods may raise `Unreachable`; those that write, `NotAllowed` and `PayloadTooLarge`.

    Attributes:
        sealing: what seals payloads that are stored over this connection, and opens those that are read; None: nothing does.
            The bus itself does not look at it: payloads do, see bus/serving/payloads.py.
        passing: what is stored over it is in the memory of this process alone.
    """

    sealing: Sealing | None
    passing: bool

    @property
    def max_payload(self) -> int:
        """Bytes that headers and data of one message may have together."""
        ...

    @property
    def url(self) -> str: ...

    @property
    def connected(self) -> bool: ...

    @property
    def clogged(self) -> bool:
        """Whether so much waits to be sent that who can do without sending something should."""
        ...

    async def close(self) -> None: ...

    # -- streams
    async def ensure_stream(self, config: StreamConfig) -> StreamInfo:
        """Create the stream, or add the subjects and copies that it lacks, change its note and switch rollup off. It removes no
        message.

        Raises `SubjectTaken`, `BusError` DX412 (message TTL or schedules are on, which no server
        switches off again).
        """
        ...

    async def stream(self, name: str) -> StreamInfo | None: ...

    async def stream_of(self, subject: str) -> str | None:
        """The stream that captures the subject (or pattern)."""
        ...

    # -- write
    async def publish(self, draft: NewMessage, *, timeout: float = 5.0) -> Ack:
        """Store one message. A `Nats-Msg-Id` seen within the stream's window gives `duplicate=True`.

        Raises: `NotStored`, `Fenced` (expect), `StreamFull`, `Unsettled` (no answer).
        """
        ...

    async def publish_all(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> list[Ack | BusError]:
        """Store each message by itself, all in flight at once and in this order; what `publish` would give for each, or raise.

        Raises for all of them, before anything is sent, where one could not be sent at all: PayloadTooLarge, DataError; and
        `Unreachable` without a connection. Keep to WINDOW messages of WINDOW_BYTES together.
        """
        ...

    async def commit(self, drafts: Sequence[NewMessage], *, timeout: float = 5.0) -> int:
        """Store all messages or none, in order, with consecutive sequences; the sequence of the last.

        At most COMMIT_LIMIT, all in one stream; one alone is a plain publish. Only one draft a subject may have `expect`,
        and it must be the first of its subject: behind another one of the same batch the server refuses any number.
        Raises: `Fenced`, `StreamFull`, `Unsettled`, `BusError` (refused for another reason: nothing was stored).
        """
        ...

    # -- read
    async def reader(
        self,
        stream: str,
        filters: Sequence[str],
        *,
        after: int,
        name: str,
        window: int = 2000,
        created: float = 0.0,
        time: float = 0.0,
        bodies: bool = True,
        listed: bool = False,
    ) -> Reader:
        """Read what matches `filters`, from the first message with a sequence over `after`. `name`: the names of its consumers
        begin so.

        `created`: when the stream was made in which `after` counts (StreamInfo); 0: the one that is there now. `time`: when the
        message at `after` was stored; 0: not known. Where another one lies there, reading fails: the stream was rolled back.
        Without `bodies` the server sends only headers, and every message is empty. `listed`: where the connection has an inbox
        prefix of its own, the consumer has one of the few names that permissions can list for that user.
        """
        ...

    async def get(self, stream: str, sequence: int) -> Message | None:
        """One stored message; None where there is none any more."""
        ...

    async def last(self, stream: str, subject: str) -> Message | None:
        """The last message of a subject (or pattern), asked of the leader."""
        ...

    async def multi_last(self, stream: str, subjects: Sequence[str]) -> dict[str, Message]:
        """The last message of each of these subjects that has one, asked of any replica, so it may be behind: no patterns.

        A single subject takes the right to ask for this subject alone.
        """
        ...

    async def next(self, stream: str, subject: str, sequence: int) -> Message | None:
        """The first message of a subject (or pattern) from `sequence` on; None where there is none."""
        ...

    async def scan(self, stream: str, filters: Sequence[str], *, start: int, stop: int) -> list[Message]:
        """All messages that match, with start <= sequence <= stop, in order. Waits for nothing new.

        Each says whether `commit` stored it together with others: nobody else can make it look so by copying its headers.
        """
        ...

    async def page(
        self, stream: str, filters: Sequence[str], *, start: int, stop: int, most: int = PAGE_MESSAGES
    ) -> list[Message]:
        """The first messages that `scan` would give: `most` of them or a few MiB, whichever is less. Empty: there is none."""
        ...

    async def count(self, stream: str, filters: Sequence[str], *, after: int = 0) -> int:
        """How many messages with a sequence over `after` match a filter. Reads none of them."""
        ...

    async def purge(self, stream: str, subject: str, *, below: int) -> None:
        """Remove the messages of a subject (or pattern) whose sequence is under `below`."""
        ...

    async def delete(self, stream: str, sequence: int, *, erase: bool = False) -> None:
        """Remove one message. `erase`: and overwrite its bytes on the disk, which takes longer."""
        ...

    # -- work
    async def begin_of_consumer(self, stream: str, name: str) -> int | None:
        """Behind which sequence the durable consumer of this name delivers, as the server says; None where there is none.

        Raises BusError where there is no such stream.
        """
        ...

    async def backlog(self, stream: str, name: str) -> int | None:
        """How many messages wait in the durable consumer of this name, delivered to nobody yet; None where there is none.

        Raises BusError where there is no such stream.
        """
        ...

    async def add_consumer(self, stream: str, pattern: str, *, name: str, ack_wait: float, after: int = 0) -> None:
        """Make the durable consumer `name`, unless it is there: explicit ack, delivered again for ever.

        It delivers what matches and has a sequence over `after`.
        """
        ...

    async def work(self, stream: str, *, name: str, free: Callable[[], int]) -> WorkQueue | None:
        """Share the durable consumer `name`; None where there is none.

        `free`: how many more deliveries this process can hold now; asked before each pull.
        """
        ...

    def held(self, stream: str, name: str, token: str, message: Message) -> Delivery:
        """A delivery of the consumer `name` that another process had, and has given to this one with its token and message.

        Raises DecodeError where `token` is of none.
        """
        ...

    # -- core: no storage, at most once
    async def request(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> Message:
        """Send a request and wait for one answer.

        Raises `Saturated` at once when nobody listens, `Unreachable` when no answer comes within `timeout` seconds.
        """
        ...

    async def send(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        """Publish without storing and without an answer."""
        ...

    def tell(self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        """`send` that does not wait while the socket takes no more: for little at a time, where nothing can wait."""
        ...

    async def subscribe(self, subject: str, handler: Callable[[Message], Awaitable[None]], *, queue: str = "") -> Subscription:
        """Call `handler` for each message, one at a time, in order; in a `queue` group one member gets each."""
        ...

    def inbox(self, take: Callable[[Message], None]) -> Inbox:
        """A subject of its own for answers: `take` is called with each, in order, as it comes. Costs the server nothing.

        `take` must not raise. Where a message that asked for an answer reaches nobody, one comes with `Status` 503.
        """
        ...

    # -- keys and objects
    async def bucket(self, name: str, *, replicas: int = 1, once: bool = False) -> Bucket:
        """The bucket, made if missing; `replicas` is for that. Nothing in it expires. Raises `BusError` DX412.

        once: each key takes one value, and another one only when that was deleted: nobody who may write can replace it. One
        that is there becomes so, and stays so whoever opens it.
        """
        ...

    async def objects(self, name: str, *, replicas: int = 1) -> Objects:
        """The object store, made if missing; `replicas` is for that. Raises `BusError` DX412."""
        ...

    async def has(self, kind: Kept, name: str, *, own: bool = False) -> bool:
        """Whether there is a stream, bucket or object store of this name; `own`: one that dspex has made. Makes none."""
        ...

    async def led_for(self, kind: Kept, name: str) -> float:
        """Seconds for which the server that answers has led it; infinite where no other one could, and where it is not there.

        One that has just become the leader may not show yet what was put just before.
        """
        ...

    async def remove(self, kind: Kept, name: str) -> bool:
        """Delete a stream with its consumers, a bucket or an object store, and all that is in it; whether it was there."""
        ...


Kept = Literal["stream", "bucket", "objects"]
"""What a bus keeps under a name."""

BusState = Literal["connected", "disconnected", "closed"]


@dataclass
class BusEvents:
    """Callbacks for the state and the errors of a bus. They are called from the bus's own loop and must not block."""

    state: Callable[[BusState, str], None] = field(default=lambda state, why: None)
    error: Callable[[str], None] = field(default=lambda text: None)
