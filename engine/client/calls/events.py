"""What comes of a streamed call before its result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accepted:
    """A worker has the call. Comes first. `call`: its id; `worker`: which worker."""

    call: str
    worker: str


@dataclass(frozen=True)
class Progress:
    """What the program says of how the call goes: `dspex.workers.context().status(text)`."""

    text: str


@dataclass(frozen=True)
class Chunk:
    """A piece of the answer's text.

    Attributes:
        field: of which output.
        text: what comes next of it. A text as it is; of another value, what the model wrote for it.
        sequence: from 1, without a hole, over all fields.
    """

    field: str
    text: str
    sequence: int
