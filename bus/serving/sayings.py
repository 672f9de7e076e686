"""What a worker answers to an interactive call: that it has it, what it says meanwhile to who wants to be told, the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from dspex.bus import codecs
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import DecodeError

# What a reply to an interactive call is, in its header subjects.KIND
ACCEPTED = "accepted"  # first frame of an answer: {"kind", "call", "worker", "free", "waiting"}; slots, and calls for one
BUSY = "busy"  # the worker's last slot was taken meanwhile: ask again
SAID = "said"  # meanwhile, where the request asks for it: a packed Saying
RESULT = "result"  # last frame: a packed CallRecord


class Said(NamedTuple):
    """The text of the output `field` that begins at its character `at`; what a program itself says has no field."""

    field: str
    at: int
    text: str


@dataclass(frozen=True)
class Saying:
    """One message of it, which may be lost. `number`: from 1, of all messages that the worker sends of the call."""

    number: int
    said: list[Said]

    def pack(self) -> bytes:
        """As `unpack` takes it."""
        return codecs.msgpack_bytes({"number": self.number, "said": [one._asdict() for one in self.said]})

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The message that `pack` wrote. Raises DecodeError."""
        known = checked(cls, "what a worker says", codecs.decode(data, codecs.MSGPACK))
        try:
            return cls(**known)
        except TypeError as e:
            raise DecodeError(f"not what a worker says: {e}") from None
