"""Dead letters as messages: how an event that could not be processed is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from dspex.bus import subjects
from dspex.bus.port import NewMessage
from dspex.bus.records import Letter, NodeEvent, StoredAt
from dspex.engine.runtime.failure import Failure
from dspex.engine.runtime.walk import Address

TRACEBACK_LIMIT = 8192  # characters of a traceback that a dead letter keeps: its end, where the cause is
_MEMORY = re.compile(r"\b0x[0-9a-f]{6,16}\b")  # an address differs at every walk, and a letter must not


def letter(
    failure: Failure,
    event: NodeEvent,
    address: Address,
    clock: float,
    stored: StoredAt | None = None,
    headers: Mapping[str, str] | None = None,
) -> NewMessage:
    """The dead letter of an event, as a message. Data too large to be kept twice is referred to by `stored`."""
    a = address
    whole = Letter(
        topology=a.topology,
        node=failure.node or event.node,
        event=event._replace(attempts=event.attempts + 1),
        redrive=subjects.edge(a.app, a.topology, a.stage, a.partition),
        error={k: _text(v[:TRACEBACK_LIMIT]) if isinstance(v, str) else v for k, v in failure.error.as_dict().items()},
        traceback=_text(failure.traceback[-TRACEBACK_LIMIT:]),
        time=clock,
        headers=dict(headers or {}),
    )
    own = {subjects.EVENT_ID: event.origin.id, subjects.RUN: event.origin.run}
    return NewMessage(subjects.dead(a.app, a.topology, whole.node), _fitting(whole, a.limit - 1024, stored), own)


def _text(text: str) -> str:
    """`text` as it can be written, and the same at every walk.

    Lone surrogates are replaced, which UTF-8 cannot hold: it must always be possible to write a letter.
    """
    return _MEMORY.sub("0x…", text.encode(errors="replace").decode())


def _fitting(letter: Letter, limit: int, stored: StoredAt | None) -> bytes:
    """The letter as bytes that one message can hold.

    Where it is too large, it leaves out first what is stored elsewhere, then what a redrive can do without: a letter that
    the server refuses would stop its partition for good.
    """
    body = letter.pack()
    if len(body) > limit and stored:
        letter = replace(letter, event=letter.event._replace(data=b""), stored=stored)
        body = letter.pack()
    if len(body) > limit:
        short = {k: v[:500] if isinstance(v, str) else v for k, v in letter.error.items()}
        letter = replace(letter, error=short, traceback=letter.traceback[-500:], headers={})
        body = letter.pack()
    if len(body) > limit:  # of a call: its data fits, and a redrive makes the call again
        letter = replace(letter, event=letter.event._replace(outputs=None))
        body = letter.pack()
    if len(body) > limit:  # the data came with a redrive, whose letter still holds it
        body = replace(letter, event=letter.event._replace(data=b"")).pack()
    return body
