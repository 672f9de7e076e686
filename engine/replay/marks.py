"""What only the runtime knew of an arrival, as the log says it: put back on the arrival when that is replayed. And which
messages of a commit are of a run, and how they differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from dspex.bus import subjects
from dspex.bus.errors import DecodeError
from dspex.bus.message import Message
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRequest, Letter, NodeEvent, pack_frame, unpack_frame
from dspex.engine.runtime.arrival import Answered, Arrival, Due
from dspex.engine.runtime.inputs.records import without_payload


def marked(arrival: Arrival, mark: Sequence[Any]) -> Arrival:
    """The arrival, with what only the runtime knew of it."""
    kind, what = mark[0] if mark else "", arrival.what
    if kind == "refused":
        return arrival._replace(refused=mark[1])
    if kind == "payload_gone":
        return arrival._replace(gone=True)
    if kind == "record_gone" and isinstance(what, Answered):
        return arrival._replace(what=without_payload(what))
    if kind == "record_gone" and isinstance(what, Due) and isinstance(what.what, Answered):
        return arrival._replace(what=what._replace(what=without_payload(what.what)))
    if kind == "gone" and isinstance(what, Due):
        return arrival._replace(what=what._replace(what=None))
    if kind == "again" and isinstance(what, Due):
        return arrival._replace(what=what._replace(timer=what.timer._replace(kind="again")))
    if kind == "gone" and isinstance(what, Answered):
        return arrival._replace(what=what._replace(event=None))
    return arrival


def run_of(arrival: Arrival) -> str:
    """The run of what is taken; "" where it does not say one."""
    match arrival.what:
        case NodeEvent() as event:
            return event.origin.run
        case Answered(event=NodeEvent() as event):
            return event.origin.run
        case Due(timer=timer):
            return timer.run
        case _:
            return ""


def of_runs(runs: Collection[str], messages: Iterable[Message | NewMessage | None]) -> list[tuple[str, Any]]:
    """What is of runs: messages that name one, and their events in frames. What is gone says nothing."""
    found: list[tuple[str, Any]] = []
    for m in messages:
        if m is None:
            continue
        if (m.headers or {}).get(subjects.RUN) in runs:
            found.append(outcome(m))
            continue
        found += [(m.subject, event) for event in _events(m) if event.origin.run in runs]
    return found


def outcome(m: Message | NewMessage) -> tuple[str, bytes]:
    """What a message says: of a dead letter all but the lines of code that failed, which other code has elsewhere; and of what
    another version of dspex wrote, the same with the defaults of what that did not know.
    """
    with suppress(DecodeError):  # in the object store, or sealed
        if subjects.matches("dspex.*.dead.>", m.subject):
            return m.subject, replace(Letter.unpack(m.data), traceback="").pack()
        if subjects.is_work(m.subject):
            return m.subject, CallRequest.unpack(m.data).pack()
        if subjects.matches("dspex.*.edge.>", m.subject):
            return m.subject, pack_frame(unpack_frame(m.data))
    return m.subject, m.data


def runs_in(messages: Iterable[Message | NewMessage | None]) -> list[str]:
    """The runs that messages are of, in order."""
    found: list[str] = []
    for m in messages:
        if m is None:
            continue
        found += [run] if (run := (m.headers or {}).get(subjects.RUN)) else []
        found += [event.origin.run for event in _events(m)]
    return found


def _events(m: Message | NewMessage) -> list[NodeEvent]:
    """The events of a frame; none of another message."""
    try:
        return unpack_frame(m.data) if subjects.matches("dspex.*.edge.>", m.subject) else []
    except DecodeError:  # in the object store, or sealed
        return []


def summary(messages: Sequence[NewMessage | Message]) -> str:
    """How many went where."""
    counts = Counter(m.subject for m in messages)
    return ", ".join(f"{n} to {subject}" for subject, n in sorted(counts.items())) or "none"


def same_bytes(one: bytes, other: bytes) -> int:
    """How many of the first bytes are the same."""
    return next((n for n, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
