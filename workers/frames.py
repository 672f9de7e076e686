"""How a pool's parent and its children talk: MessagePack over a socket pair, each frame with its length in front. It is a list:
its kind, and its fields in their order. Names would be most of it, and to read them takes longer than all else; so a new field
goes to the end.

A socket of their own, not stdin and stdout: a program that prints would write into the frames, and a program that closes
stdin would look like a dead parent.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar, get_args

from dspex.bus import codecs
from dspex.bus.codecs.checking import checked, made
from dspex.bus.errors import DecodeError
from dspex.bus.serving import payloads
from dspex.bus.serving.programs.usage import Usage
from dspex.workers.answer import Answer, ErrorMap
from dspex.workers.config import PoolConfig

HEAD = struct.Struct(">I")
MOST_STATES = 16  # saved states that a child keeps
StateValue = TypeVar("StateValue")
MOST = 3 * payloads.MOST  # bytes of a frame: what a call is given, with the event that it is for, or what it gives


class StateTag(NamedTuple):
    """Which saved state a call is answered with: its name (`draft@4`), its digest, and the DSPy that it was saved under."""

    name: str
    digest: str
    dspy_version: str = ""


def kept_states(known: dict[str, StateValue], digest: str, value: StateValue) -> None:
    """Note that a state is used. Parent and child do so with the same frames in the same order: so the parent knows which
    states the child still has.
    """
    known.pop(digest, None)
    known[digest] = value
    if len(known) > MOST_STATES:
        del known[next(iter(known))]


# -- parent → child --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class StartFrame:
    """The first frame. `parent`: the process that started it, with which it ends. `index`: of the child's place in the pool."""

    parent: int
    pool: PoolConfig
    index: int = 0


@dataclass(frozen=True)
class CallFrame:
    """Answer a call.

    Attributes:
        work: the request, packed.
        local: where the local model's server is, if the call may need it.
        lms: the profiles to try, in order; None: those of the request, or the pool's.
        limit: seconds after which the parent gives it up; None: those of the request.
        state: the saved state of its program; None for none.
        hedge: by profile, seconds after which a second request may be made; None: none may.
        batch: it waits for the answer of a batch for `limit` seconds, and is not asked live.
    """

    id: int
    work: bytes
    local: str | None = None
    lms: list[str] | None = None
    limit: float | None = None
    state: StateTag | None = None
    hedge: dict[str, float] | None = None
    batch: bool = False


@dataclass(frozen=True)
class StateFrame:
    """A saved state, packed, that calls behind this frame name by its digest."""

    digest: str
    body: bytes


@dataclass(frozen=True)
class CancelFrame:
    """Give a call up. `over`: for good; else somebody goes on with it."""

    id: int
    over: bool = False


@dataclass(frozen=True)
class JournalledFrame:
    """What came of a JournalFrame.

    Attributes:
        id, number: of the call, and of what it asked.
        entries: of a journal that was opened, packed. more: others follow. error: why it was not opened, or took no entry.
    """

    id: int
    number: int
    entries: list[bytes] = field(default_factory=list[bytes])
    more: bool = False
    error: ErrorMap | None = None


@dataclass(frozen=True)
class FurtheredFrame:
    """What came of a FurtherFrame. `error`: why its profile may not be asked; None where it may."""

    id: int
    error: ErrorMap | None = None


@dataclass(frozen=True)
class StopFrame:
    """Let nothing more run, and end."""


# -- child → parent --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class HelloFrame:
    """The child is ready. `found`: refs of the programs that it can run; `failed`: why not, by pattern of the allow-list.

    `limited`: the system refuses it more memory than its pool allows.
    """

    pid: int = 0
    dspy_version: str = ""
    python: str = ""
    found: list[str] = field(default_factory=list[str])
    failed: Mapping[str, str] = field(default_factory=dict[str, str])
    limited: bool = False


@dataclass(frozen=True)
class FatalFrame:
    """The child cannot run: a setting is wrong, or something is not installed."""

    error: ErrorMap


@dataclass(frozen=True)
class StatusFrame:
    """What a program says about a call that it is running."""

    id: int
    text: str


@dataclass(frozen=True)
class ChunkFrame:
    """What a model has written of an output of a call, where its caller wants to be told: the next piece of its text."""

    id: int
    field: str
    text: str


@dataclass(frozen=True)
class JournalFrame:
    """What a call asks of its journal: to append a packed JournalEntry, or to be opened. `number`: of what it asks.

    `asks`: a model is about to be asked, and it is told when there is room for that in the limits. `failed`: what was asked so
    has failed, and needs its room no more; nobody waits for an answer.
    """

    id: int
    number: int
    entry: bytes | None = None
    asks: bool = False
    failed: bool = False


@dataclass(frozen=True)
class FurtherFrame:
    """A call wants to ask the next profile of its list. `used`: what it has used so far, a Usage; None: that is not known.

    again: it wants to ask the profile that it asks a second time meanwhile.
    """

    id: int
    lm: str
    used: Mapping[str, Any] | None = None
    again: bool = False


class BatchRow(NamedTuple):
    """A batch: its profile, its id ("" before it is made), what its provider says, calls that wait here, its requests, and the
    answered ones.
    """

    lm: str
    id: str
    status: str
    calls: int
    of: int
    done: int


@dataclass(frozen=True)
class BatchesFrame:
    """The batches that calls of this process wait for, whenever that has changed."""

    rows: list[BatchRow]


@dataclass(frozen=True)
class DoneFrame:
    """The end of a call."""

    id: int
    answer: Answer


FromParent = StartFrame | CallFrame | StateFrame | CancelFrame | JournalledFrame | FurtheredFrame | StopFrame
FromChild = HelloFrame | FatalFrame | StatusFrame | ChunkFrame | JournalFrame | FurtherFrame | BatchesFrame | DoneFrame
Frame = FromParent | FromChild
_TYPES: Mapping[str, type[Frame]] = {kind.__name__.removesuffix("Frame").lower(): kind for kind in get_args(Frame)}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_FIELDS = {kind: [f.name for f in fields(kind)] for kind in (*_NAMES, Answer, Usage)}


def pack(frame: Frame) -> bytes:
    """A frame as it goes over the socket. Raises InvalidInput for a value that MessagePack cannot hold."""
    plain = [_NAMES[type(frame)], *vars(frame).values()]
    if isinstance(frame, DoneFrame):  # at once: the encoder would ask of each object what it is
        used = frame.answer.usage
        answer = vars(frame.answer) | {"usage": None if used is None else [*vars(used).values()]}
        plain[-1] = [*answer.values()]
    body = codecs.msgpack_bytes(plain)
    return HEAD.pack(len(body)) + body


def unpack(body: bytes) -> Frame:
    """A frame. A program may write anything to the socket of its process: raises DecodeError for what is none.

    A CallFrame is not checked by type: only a parent sends one, and no parent takes one.
    """
    raw = codecs.decode(body, codecs.MSGPACK)
    kind = _TYPES.get(str(raw[0])) if isinstance(raw, list) and raw else None
    if kind is None:
        raise DecodeError("not a frame of dspex")
    said = dict(zip(_FIELDS[kind], raw[1:]))
    try:
        if kind is StartFrame:
            return StartFrame(said["parent"], PoolConfig.from_plain(said["pool"]), said["index"])
        if kind is CallFrame:
            said["state"] = StateTag(**state) if (state := said["state"]) else None
            return made(kind, said)
        if kind is DoneFrame and type(number := said["id"]) is int:
            answer = dict(zip(_FIELDS[Answer], said["answer"]))
            answer["usage"] = None if (used := answer["usage"]) is None else dict(zip(_FIELDS[Usage], used))
            return DoneFrame(number, Answer.read(answer))
        return made(kind, checked(kind, "a frame", said))
    except (KeyError, TypeError) as e:
        raise DecodeError(f"not a frame of dspex: {e!r}") from None
