"""What waits for a person's decision, and what such a decision says: shared by the operator that parks events, by the engine,
which takes decisions, and by clients, which make them.

A decision is a message on a subject of its own beside that of the partition's events, with the operator in a header: any NATS
client with the rights of an approver can write it.

    Dspex-Decide: NODE
    {"approval": ID, "digest": DIGEST, "decision": "accept"|"reject"|"cancel", "edit": {…}, "note": "…", "who": "…"}

Who cancels a run writes "cancel" about what waits in it: that is final, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from dspex.bus.codecs import decode, encode, msgpack_bytes
from dspex.bus.codecs.checking import checked
from dspex.bus.codecs.msgpack import load_msgpack
from dspex.bus.errors import DecodeError, InvalidInput
from dspex.bus.records import Origin

AcceptOrReject: TypeAlias = Literal["accept", "reject"]
DecisionKind: TypeAlias = Literal["accept", "reject", "cancel"]
LONGEST: Final = 8192  # characters of a note


@dataclass(frozen=True)
class Decision:
    """What somebody decided. `edit`: fields that replace those of the data, where it is accepted. `digest`: of what was shown.

    `who`: as they say of themselves.
    """

    approval: str
    digest: str
    decision: DecisionKind
    edit: Mapping[str, Any] | None = None
    note: str = ""
    who: str = ""

    @classmethod
    def read(cls, data: object) -> Decision:
        """The decision that somebody wrote. Raises InvalidInput."""
        fix = "decide with dspex approvals, or Client.decide"
        try:
            known = checked(cls, "a decision", data)
            found = cls(**known)
        except (DecodeError, TypeError) as e:
            raise InvalidInput(f"it is no decision: {e}", fix=fix) from e
        if isinstance(data, dict) and (strange := sorted(map(str, data.keys() - known.keys()))):
            raise InvalidInput(f"it is no decision: it says {strange[0][:100]!r}, which none does", fix=fix)
        if len(found.note) + len(found.who) > LONGEST or (found.edit is not None and found.decision != "accept"):
            raise InvalidInput("it is no decision: its note is too long, or it edits what it rejects", fix=fix)
        return found

    def pack(self) -> bytes:
        """As the message has it."""
        return encode({k: v for k, v in vars(self).items() if v not in (None, "")}, "json")[0]


class Waiting(NamedTuple):
    """An event that waits.

    Attributes:
        origin: of the event when it goes on; its id is that of the approval.
        since: when it came; due: when its time is over, None: never. Seconds since the epoch, on the clock of the engine.
        show: the fields that people are shown; None: all of the data.
        decided: what was decided, until the event has gone on.
    """

    origin: Origin
    content_type: str
    body: bytes
    since: float
    due: float | None = None
    show: tuple[str, ...] | None = None
    decided: Decision | None = None

    def pack(self) -> bytes:
        """As a row."""
        decided = vars(self.decided) if self.decided is not None else None
        return msgpack_bytes([list(self.origin), *self[1:6], decided])

    @classmethod
    def unpack(cls, row: bytes) -> Waiting:
        """What `pack` wrote."""
        origin, content_type, body, since, due, show, decided = load_msgpack(row)
        made = Decision(**decided) if decided is not None else None
        return cls(Origin(*origin), content_type, body, since, due, None if show is None else tuple(show), made)

    @property
    def data(self) -> Any:
        """The data of the event, as plain data."""
        return decode(self.body, self.content_type)

    @property
    def shown(self) -> Any:
        """What people are shown of it."""
        data = self.data
        return data if self.show is None or not isinstance(data, dict) else {f: data[f] for f in self.show if f in data}

    @property
    def digest(self) -> str:
        """Of the event and what is shown of it: a decision names it, so that it holds for nothing else."""
        whole = msgpack_bytes([self.origin.id, self.content_type, self.body, self.show])
        return blake2b(whole, digest_size=12).hexdigest()
