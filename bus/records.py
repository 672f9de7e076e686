"""What engines and workers send to each other: work, records, dead letters. Nothing else connects the two.

A result carries its work back, bytes and all. So a stage keeps no event in memory while a call is open, a record is whole
by itself (the inputs and the outputs), and a retry is the same work with the next attempt number.

MessagePack maps with the field names as keys: unknown keys of a newer version are ignored, missing ones get the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args

from dspex.bus import codecs
from dspex.bus.errors import DecodeError

Adapter: TypeAlias = Literal["chat", "json", "xml"]
"""How the inputs of a call are written into messages, and how its reply is read."""

Outputs: TypeAlias = Mapping[str, Any]
"""What a call gives: values by name, as JSON-able data."""

Route: TypeAlias = Literal["auto", "worker", "native"]
"""Who answers a call in the worker: native Predict where it gives what DSPy gives, else DSPy; always DSPy; never DSPy."""

OnError: TypeAlias = Literal["dead_letter", "skip"]
"""What becomes of an event that fails for good."""

Order: TypeAlias = Literal["any", "key"]
"""How results are released: as they finish, or in the order of their key."""

MAX_ITERS = 10
"""The most steps of a `react` that does not say how many."""

ADAPTERS: tuple[Adapter, ...] = get_args(Adapter)

DEFAULT_DEADLINE = "10m"  # of all attempts of a call together
DEFAULT_POOL = "lightweight"
"""The pool of a call that names none."""


class _Packed:
    def pack(self) -> bytes:
        """The object as MessagePack; values are converted as in any event. Raises InvalidInput for what cannot be."""
        return codecs.msgpack_bytes(vars(self))  # not asdict: it copies everything, and is twenty times as slow

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The object that `pack` wrote. Raises DecodeError."""
        try:
            raw = codecs.decode(data, codecs.MSGPACK)
            return cls(**{f.name: raw[f.name] for f in fields(cls) if f.name in raw})  # type: ignore[arg-type]
        except TypeError as e:
            raise DecodeError(f"not a {cls.__name__.lower()} of dspex: {e}") from e


class Origin(NamedTuple):
    """Where an event stands in its run: what its children inherit. `time` is event time in seconds since the epoch.

    `headers`: the publisher's own, for functions that look at them; children do not inherit those.
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


@dataclass(frozen=True)
class CallSpec:
    """A recorded operator as data: what a worker needs to run it. No code, no key, no secret.

    Attributes:
        kind: "predict", "chain_of_thought", "react" or "program".
        target: the signature for the first three, the ref `pkg.module:Class` for a program.
        signature: "a, b: int -> c"; for a program too.
        instructions: of the signature; "" for DSPy's default.
        lm: profiles in the order they are tried; empty: the pool's.
        adapter: "chat", "json" or "xml"; None: the profile's.
        config: ModuleConfig (temperature, max_tokens, …).
        tools: refs, for react.
        max_iters: for react.
        state: name of a stored compiled program; None for none.
        fields: of the signature, what its text cannot say, by field: see `Signature.plain`. Absent between versions of
            dspex that do not know it; descriptions and defaults of class forms are then left out.
        route: who answers: "auto", "worker" (DSPy) or "native". Absent: "worker", the only route of older engines.
    """

    kind: str
    target: str
    signature: str
    instructions: str = ""
    lm: tuple[str, ...] = ()
    adapter: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    max_iters: int = MAX_ITERS
    state: str | None = None
    route: str = "worker"
    fields: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(frozen=True)
class Work(_Packed):
    """One attempt at one call.

    Attributes:
        call: id of the call; the same in every attempt.
        ordinal: dense number of the call in its stage partition; -1 for an interactive call.
        attempt: from 1.
        topology, node: the operator that makes the call.
        reply: subject that the result is stored on; "" for an interactive call (the reply goes to the caller's inbox).
        spec: CallSpec as a map.
        inputs: signature inputs by name.
        data: the event's data as encoded, carried along untouched.
        content_type: of `data`.
        origin: Origin as a map.
        timeout: seconds for this attempt.
        deadline: seconds since the epoch; a worker that gets it later answers CallTimeout without running it.
        invalid: earlier attempts that ended in InvalidOutput.
    """

    call: str
    ordinal: int
    attempt: int
    topology: str
    node: str
    reply: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, object]
    data: bytes = b""
    content_type: str = "application/json"
    origin: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 60.0
    deadline: float = 0.0
    invalid: int = 0


@dataclass(frozen=True)
class Usage:
    """Tokens and money of one call, or of many together. `cost` in USD; None where the price is not known."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None

    def __add__(self, other: Usage) -> Usage:
        costs = [c for c in (self.cost, other.cost) if c is not None]
        return Usage(
            self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens, sum(costs) if costs else None
        )


@dataclass(frozen=True)
class CallRecord(_Packed):
    """The record of one attempt: outputs, or an error.

    Attributes:
        kind: "result" (of a call) or "resume" (run the event of `work` again from `node` on: a redrive, a RetryLater).
        due: seconds since the epoch before which a "resume" waits; 0: at once.
        work: the packed Work it answers.
        call, ordinal, attempt, node: of that work, so that it need not be unpacked to be counted or dropped.
        outputs: by name; None with an error.
        error: DspexError.as_dict() plus "traceback" (at most 8 KiB); None with outputs.
        route: "worker", "native", "cache", "fallback" or "record".
        lm, worker, program, dspy_version: who answered, with what.
        started: seconds since the epoch; elapsed: seconds.
        usage: Usage as a map.
    """

    call: str
    ordinal: int
    attempt: int
    node: str
    work: bytes = b""
    kind: str = "result"
    due: float = 0.0
    outputs: Mapping[str, object] | None = None
    error: Mapping[str, object] | None = None
    route: str = "worker"
    lm: str = ""
    worker: str = ""
    program: str = ""
    dspy_version: str = ""
    started: float = 0.0
    elapsed: float = 0.0
    usage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Letter(_Packed):
    """A dead letter: the event, the operator that could not process it, and why.

    Attributes:
        node: the operator that failed; for an event that could not be read, the source.
        entry: where a redrive goes on: the source, or the call whose answer could not be used or never came.
        outputs: of that call, where it had answered; None otherwise.
        origin: Origin of the event as a map.
        data: the event's data as encoded; `content_type` says how. b"" where it was too large to be kept twice: then
            `stored` says where it is.
        stored: (stream, sequence) of the message that has the data.
        error: DspexError.as_dict().
        traceback: at most 8 KiB.
        attempts: how often it was tried.
        time: seconds since the epoch.
        reply: inbox of the stage partition, where a redrive goes.
        call: id of the call that failed; "" for a native operator.
        headers: of the event as it was read.
    """

    topology: str
    node: str
    origin: Mapping[str, Any]
    data: bytes
    content_type: str
    error: Mapping[str, object]
    traceback: str = ""
    attempts: int = 1
    time: float = 0.0
    reply: str = ""
    call: str = ""
    entry: str = ""
    outputs: Mapping[str, object] | None = None
    stored: tuple[str, int] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


# -- between a pool's parent and its children, and for interactive calls -----------------------------------------
# What a reply to an interactive call is, in its header subjects.KIND.
ACCEPTED = "accepted"  # first frame of an answer: {"kind", "call", "worker"}
BUSY = "busy"  # the worker's last slot was taken meanwhile: ask again
RESULT = "result"  # last frame: a packed CallRecord
ROUTES = ("auto", "worker", "native")  # of CallSpec
