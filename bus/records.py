"""What engines and workers send to each other: requests, records, events, dead letters. Nothing else connects the two.

The event of a call travels with its request and comes back with its record, byte for byte. So a stage keeps no event in
memory while a call is open. Whoever may write records could send another event back, so the open call keeps its digest.

MessagePack, maps with the field names as keys. What comes over the bus is checked by type before it becomes an object: unknown
keys of a newer version are ignored, missing ones get the default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias, get_args

import orjson
from typing_extensions import TypedDict  # pydantic checks it, and takes no other one before Python 3.12

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import as_ours, checked, made
from dspex.bus.errors import DecodeError, is_seconds
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.programs.names import is_version, may_mean
from dspex.bus.serving.programs.usage import ANSWERED as ANSWERED
from dspex.bus.serving.programs.usage import BEGAN as BEGAN
from dspex.bus.serving.programs.usage import HEDGED as HEDGED
from dspex.bus.serving.programs.usage import NO_USAGE as NO_USAGE
from dspex.bus.serving.programs.usage import SILENT as SILENT
from dspex.bus.serving.programs.usage import Tried as Tried
from dspex.bus.serving.programs.usage import Usage as Usage

Adapter: TypeAlias = Literal["chat", "json", "xml"]
"""How the inputs of a call are written into messages, and how its reply is read."""

Affinity: TypeAlias = Literal["none", "prefer", "require"]
"""Whether calls of one key go to the same process of a pool: wherever there is room; where that has room; or to no other for as
long as it lives.
"""

MOST_PROCESSES: Final = 10_000
"""That a pool may be asked to have."""

Outputs: TypeAlias = Mapping[str, Any]
"""What a call gives: values by name, as JSON-able data."""

Route: TypeAlias = Literal["auto", "worker", "native"]
"""Who answers a call in the worker: native Predict where it gives what DSPy gives, else DSPy; always DSPy; never DSPy."""

OnError: TypeAlias = Literal["dead_letter", "skip"]
"""What becomes of an event that fails for good."""

Order: TypeAlias = Literal["any", "key", "serial"]
"""How results are released: as they finish, or in the order of their key; or one call of a key is made after the other."""

ADAPTERS: tuple[Adapter, ...] = get_args(Adapter)

DEFAULT_DEADLINE = "10m"  # of all attempts of a call together
MOST_FACTOR: Final = 100.0  # of a back-off; with more the second pause is the longest, and the last ones are no numbers
DEFAULT_POOL = "lightweight"
"""The pool of a call that names none."""


class _Packed:
    @classmethod
    def at_once(cls, **said: Any) -> Self:
        """`cls(**said)`, for what is made for each event: see `made`."""
        return made(cls, said)

    def pack(self) -> bytes:
        """The object as MessagePack; values are converted as in any event. Raises InvalidInput for what cannot be."""
        return codecs.msgpack_bytes(vars(self))  # not asdict: it copies everything, and is twenty times as slow

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The object that `pack` wrote. Raises DecodeError."""
        return cls._read(codecs.decode(data, codecs.MSGPACK))

    @classmethod
    def _read(cls, raw: object) -> Self:
        known = checked(cls, f"a {cls.__name__}", raw)
        try:
            return made(cls, known)
        except TypeError as e:
            raise DecodeError(f"not a {cls.__name__} of dspex: {e}") from None


class Origin(NamedTuple):
    """Where an event stands in its run: what its children inherit. `time` is event time in seconds since the epoch.

    `headers`: the publisher's own; children do not inherit those. `fallback`: the error's class, where outputs stand in.
    `trace`: as `tracing.joined` says it. `forks`: gather → the id that the event has for it, in all of its branches.
    """

    id: str
    subject: str
    run: str
    cause: str | None = None
    key: str | None = None
    session: str | None = None
    time: float = 0.0
    sequence: int = 0
    trace: str | None = None
    headers: Mapping[str, str] | None = None
    fallback: str | None = None
    forks: Mapping[str, str] | None = None


class StoredAt(NamedTuple):
    """A stored message."""

    stream: str
    sequence: int


class NodeEvent(NamedTuple):
    """An event at a node, where it enters the graph: a source event, one that is redriven, or what a call was made for.

    Attributes:
        node: a source, or a call.
        origin: where the event stands in its run; of a call: where the event stood that the call was made for.
        content_type, data: the data as encoded.
        call: id of the call at `node`; None for a source, and for a call that is not made yet.
        outputs: of that call: the event goes on behind it. None: the call is made.
        attempts: how often it was tried before.
    """

    node: str
    origin: Origin
    content_type: str
    data: bytes
    call: str | None = None
    outputs: Mapping[str, Any] | None = None
    attempts: int = 0

    def pack(self) -> bytes:
        """As `unpack_event` takes it."""
        # named tuples become maps here, and not one by one in the encoder: every event that crosses a hop is packed
        return codecs.msgpack_bytes(dict(zip(self._fields, self)) | {"origin": dict(zip(Origin._fields, self.origin))})


def _sound(event: NodeEvent) -> NodeEvent:
    """The event. Raises DecodeError where it is behind a call, and does not say which: what follows has its id."""
    if event.outputs is not None and event.call is None:
        raise DecodeError(f"an event at {event.node[:100]} with the outputs of a call, and without its id")
    return event


def unpack_event(data: bytes) -> NodeEvent:
    """The event that `NodeEvent.pack` wrote. Raises DecodeError."""
    return _sound(checked(NodeEvent, "an event", codecs.decode(data, codecs.MSGPACK)))


def pack_frame(events: Sequence[NodeEvent]) -> bytes:
    """Events for one stage partition, as one message. Raises DecodeError for one that no engine would take."""
    return codecs.msgpack_bytes([_sound(event) for event in events])


def unpack_frame(data: bytes) -> list[NodeEvent]:
    """The events that `pack_frame` wrote. Raises DecodeError."""
    events: list[NodeEvent] = checked(list[NodeEvent], "a frame", codecs.decode(data, codecs.MSGPACK))
    return [_sound(event) for event in events]


class RecordTo(NamedTuple):
    """Where the record of a durable call is stored.

    Attributes:
        subject: of the partition that asks.
        id: message id of the record. The engine draws a part of it at random for each claim, so only a worker that was
            given the request can know it.
        number: of the call in its partition.
        event: the packed NodeEvent that the call was made for; it comes back as it is.
    """

    subject: str
    id: str
    number: int
    event: bytes


_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")


class AnswerTo(NamedTuple):
    """Who submitted a call, and hears of its answer: tokens of subjects.

    Attributes:
        user: whose inbox it is. call: the call, as that user named it.
        client: the process that waits, which is told at once; "" for none.
    """

    user: str
    call: str
    client: str = ""

    @property
    def sound(self) -> bool:
        """Whether subjects can be made of it."""
        return all(_TOKEN.fullmatch(word) for word in (self.user, self.call, self.client or "0"))


class KeptInSession(NamedTuple):
    """What a session keeps beside its turns, and how often that was changed."""

    data: Mapping[str, Any]
    revision: int


_TUPLES: Final = {"record": RecordTo, "answer": AnswerTo, "kept": KeptInSession}  # fields of a request that are named tuples


@dataclass(frozen=True)
class CallRequest(_Packed):
    """One execution of a call.

    Attributes:
        call: id of the call; the same in every execution.
        try_number: from 1: which execution this is.
        attempt: from 1: the same, without executions that do not count because the model was not to be had.
        topology, node: the operator that makes the call; "" for a call of no topology.
        spec: what is run.
        inputs: signature inputs by name.
        run, session: of the event; the id of the call where there is none.
        timeout: seconds for this execution.
        left: seconds until the call's deadline, counted from when the request was stored or sent. A worker that gets it
            later answers CallTimeout without running it.
        invalid: earlier attempts that ended in InvalidOutput.
        alone: run by itself in a process, because workers died of it.
        record: where the record is stored; None for an interactive call, whose caller waits for the reply.
        tenant: on whose behalf; None: nobody said so.
        stream: the caller is told of the answer while it is made.
        turn: the name of the turn of `session` that its answer is to be; None: of none.
        opened: when the call was, in seconds since the epoch: the same in every execution. 0: not known.
        describe: what is asked for is what the program is made of: see `Client.describe`. Nothing is called.
        affinity: what the calls have in common that the same process of the pool should answer; None: nothing.
        answer: who submitted the call, and is told of its answer; None: nobody did.
        kept: what its session keeps, for a program that may change it; None where it is no turn, or runs no code of users.
        required: no other one may for as long as that lives, and then the call is told: AffinityLost.
        batch: seconds that it may wait for the answer of a provider's batch, counted as `left` is; 0: it is asked live.
        state: the version that the state of the spec meant in an execution before this one; "": none is known.
        trace: of who makes an interactive call, as `tracing.joined` says it; None: none. That of a durable one is its event's.
    """

    call: str
    try_number: int
    attempt: int
    topology: str
    node: str
    spec: CallSpec
    inputs: Mapping[str, Any]
    run: str
    session: str | None = None
    timeout: float = 60.0
    left: float = 600.0
    invalid: int = 0
    alone: bool = False
    record: RecordTo | None = None
    tenant: str | None = None
    stream: bool = False
    turn: str | None = None
    opened: float = 0.0
    describe: bool = False
    affinity: str | None = None
    answer: AnswerTo | None = None
    required: bool = False
    batch: float = 0.0
    kept: KeptInSession | None = None
    state: str = ""
    trace: str | None = None

    def pack(self) -> bytes:
        """The request as MessagePack, its spec as bytes in it: who reads many like it reads that once. Raises InvalidInput."""
        said = vars(self)
        if self.record is None:  # who reads it has the rest, which is most of it; and three processes do
            said = {name: value for name, value in said.items() if value is not _UNSAID[name]}
        plain: dict[str, Any] = said | {"spec": self.spec.packed}
        if self.trace is None:  # a durable request is as it was before there was such a field
            plain.pop("trace", None)
        for name in _TUPLES:  # become maps here, and not one by one in the encoder, as in NodeEvent.pack
            if (value := plain.get(name)) is not None:
                plain[name] = value._asdict()
        return codecs.msgpack_bytes(plain)

    @classmethod
    def of_ours(cls, data: bytes) -> Self:
        """The request that `unpack` has taken in another process of ours. Raises DecodeError for that of another version."""
        raw = codecs.decode(data, codecs.MSGPACK)
        try:
            for name, kind in _TUPLES.items():
                if (value := raw.get(name)) is not None:
                    raw[name] = kind(**value)
            return as_ours(cls, raw | {"spec": CallSpec.unpack(raw["spec"])})
        except (KeyError, TypeError) as e:
            raise DecodeError(f"not a CallRequest of this version: {e}") from None

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The request that `pack` wrote. Raises DecodeError, also where its spec or its times are none."""
        raw = codecs.decode(data, codecs.MSGPACK)
        if not (isinstance(raw, dict) and isinstance(raw.get("spec"), bytes)):
            raise DecodeError("not a CallRequest of dspex: it has no spec")
        found = cls._read(raw | {"spec": CallSpec.unpack(raw["spec"])})
        if not is_seconds(found.timeout) or not is_seconds(abs(found.left)):  # `left` is below 0 where the deadline passed
            raise DecodeError("not a CallRequest of dspex: its times are no numbers of seconds")
        if not is_seconds(found.batch) or (found.batch and (found.record is None or found.spec.lane != "batch")):
            raise DecodeError("not a CallRequest of dspex: only a durable call of the batch lane waits for a batch")
        if found.describe and (found.record is not None or found.topology or found.stream or found.turn is not None):
            raise DecodeError("not a CallRequest of dspex: a description is of no call")
        if found.answer is not None and (found.record is None or not found.answer.sound):
            raise DecodeError("not a CallRequest of dspex: nobody submitted it")
        if found.turn is not None and not found.session:
            raise DecodeError("it is to be a turn, and does not say of which session")
        if found.kept is not None and (found.turn is None or found.kept.revision < 0):
            raise DecodeError("not a CallRequest of dspex: only a turn is given what its session keeps")
        if found.required and not found.affinity:
            raise DecodeError("not a CallRequest of dspex: it requires the worker of a key, and has none")
        if found.state and not (is_version(found.state) and may_mean(found.spec.state, found.state)):
            raise DecodeError("not a CallRequest of dspex: its state is no version of the one that its spec names")
        return found

    def with_inputs(self, inputs: Mapping[str, Any], **more: Any) -> Self:
        """The request with these inputs, and `more` fields. Not by `replace`, which sets each field anew, and is a tenth
        of what a call costs.
        """
        made = object.__new__(type(self))
        vars(made).update(vars(self), inputs=inputs, **more)
        return made

    def called_on(self, app: str, pool: str) -> str:
        """The subject that an interactive call with this request belongs on."""
        if self.topology:
            return subjects.call(app, pool, self.topology, self.node)
        return subjects.ad_hoc_call(app, pool, subjects.DESCRIBE if self.describe else self.spec.kind)


_UNSAID: Final[Mapping[str, Any]] = {f.name: f.default for f in fields(CallRequest)}


@dataclass(frozen=True)
class CallRecord(_Packed):
    """The record of one execution: outputs, or an error.

    Attributes:
        call, try_number, attempt, topology, node: of the request.
        number, event: of the request's `record`; None and b"" for an interactive call.
        outputs: by name; None with an error.
        error: DspexError.as_dict() plus "traceback" (at most 8 KiB); None with outputs.
        route: "worker", "native", "batch", "cache", "fallback" or "record".
        lm, worker, program, dspy_version: who answered, with what.
        started: seconds since the epoch; elapsed: seconds.
        usage: Usage as a map.
        cached_from: the call whose answer it is, where the route is "cache".
        routing: what was decided about the profiles, in order; empty where there was one, which was asked.
        state: the saved state of the program, `draft@4`: the version that the name of the spec meant then; "" for none.
        warning: what may be wrong with the outputs; "" for nothing.
        requests: of models and tools: how many were "made", answered from the "journal", and "missed": answered in
            an earlier attempt, and not asked for any more. {}: they were not counted.
        exchanges: what they were asked and said, as `read_exchanges` takes it; b"" for nothing. No engine reads it.
        saved: what the program wants its session to keep; on its way there, and in no record that is stored.
    """

    call: str
    try_number: int
    attempt: int
    topology: str
    node: str
    number: int | None = None
    event: bytes = b""
    outputs: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    route: str = "worker"
    lm: str = ""
    worker: str = ""
    program: str = ""
    dspy_version: str = ""
    started: float = 0.0
    elapsed: float = 0.0
    usage: Mapping[str, Any] = field(default_factory=dict)
    routing: list[Tried] = field(default_factory=list[Tried])
    state: str = ""
    warning: str = ""
    cached_from: str = ""
    requests: Mapping[str, int] = field(default_factory=dict)
    exchanges: bytes = b""
    saved: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, request: CallRequest, **said: Any) -> Self:
        """The record of an execution that no program has answered."""
        return cls(request.call, request.try_number, request.attempt, request.topology, request.node, **said)

    def pack(self) -> bytes:
        """See _Packed; without what says nothing, which is half of it, and which who reads it has."""
        return codecs.msgpack_bytes(
            {name: value for name, value in vars(self).items() if value or not (value is None or name in _EMPTY)}
        )


_EMPTY: Final = frozenset(f.name for f in fields(CallRecord) if f.default_factory is not MISSING or f.default in ("", b"", 0.0))
"""Fields that are empty where nothing is said of them."""


class _Sized(TypedDict):
    size: int | None


class PoolSize(NamedTuple):
    """How many processes the workers of a pool are to have, on all machines together, as an operator has set it. JSON, so that
    people can look at it.

    `size`: None: as the settings say.
    """

    size: int | None

    def pack(self) -> bytes:
        return orjson.dumps(self._asdict())

    @classmethod
    def read(cls, value: bytes) -> PoolSize:
        """What `pack` gave. Raises DecodeError."""
        try:
            said: _Sized = checked(_Sized, "the size of a pool", orjson.loads(value))
        except ValueError as e:
            raise DecodeError(f"not the size of a pool: {e}") from None
        if (size := said["size"]) is not None and not 0 <= size <= MOST_PROCESSES:
            raise DecodeError(f"a pool cannot have {size} processes")
        return cls(size)


@dataclass(frozen=True)
class Letter(_Packed):
    """A dead letter: the event, the operator that could not process it, and why.

    Attributes:
        node: the operator that failed; for an event that could not be read, the source.
        event: where a redrive goes on. Its data is b"" where it is too large to be kept twice: then `stored` says where.
        stored: the message that has the data.
        redrive: subject of the stage partition's events.
        error: DspexError.as_dict().
        traceback: at most 8 KiB.
        time: seconds since the epoch.
        headers: of the event as it was read.
    """

    topology: str
    node: str
    event: NodeEvent
    redrive: str
    error: Mapping[str, Any]
    traceback: str = ""
    time: float = 0.0
    stored: StoredAt | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
