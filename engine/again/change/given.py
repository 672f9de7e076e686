"""What the messages of a commit hold: events, calls, outputs and letters; and which of them are the same in two commits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from dspex.bus import codecs, subjects
from dspex.bus.errors import DataError
from dspex.bus.message import Message, content_type, plain
from dspex.bus.records import CallRequest, Letter, NodeEvent, unpack_event, unpack_frame


class Given(NamedTuple):
    """Something of a commit: what it is, and its run. `event`: as it goes on. `to`: its subject. `asked`: of a call.
    `stored`: of an output, the message.
    """

    run: str
    step: str
    data: Any
    event: NodeEvent | None = None
    to: str = ""
    asked: CallRequest | None = None
    stored: Message | None = None

    def same(self, other: Given) -> bool:
        """Whether it is the same to whoever gets it."""
        return self[:4] == other[:4]


Pair: TypeAlias = tuple["Given | None", "Given | None", str]
"""What a commit had, what it has now, and the id of that."""


def paired(theirs: Mapping[tuple[str, str], Given], mine: Mapping[tuple[str, str], Given]) -> dict[tuple[str, str], Pair]:
    """What is the same by its id; else by what it is, in order, since what another event began has another id."""
    found: dict[tuple[str, str], Pair] = {id: (one, mine.get(id), id[1]) for id, one in theirs.items()}
    for id, one in [(id, one) for id, one in mine.items() if id not in theirs]:
        same = (
            old for old, (a, b, _) in found.items() if b is None and old[0] == id[0] and a is not None and a.step == one.step
        )
        old = next(same, None)
        found[old or id] = (theirs.get(old) if old is not None else None, one, id[1])
    return found


def like(of: Mapping[tuple[str, str], Given], id: tuple[str, str], one: Given) -> tuple[str, str] | None:
    """The id of what is the same by its id; else by what it is, in the same run."""
    if id in of:
        return id
    return next((old for old, b in of.items() if (old[0], b.run, b.step) == (id[0], one.run, one.step)), None)


def given(m: Message) -> Iterator[tuple[tuple[str, str], Given]]:
    """What a message of a commit holds, by kind and id; nothing of what cannot be read."""
    try:
        if subjects.is_work(m.subject):
            asked = CallRequest.unpack(m.data)
            event = unpack_event(asked.record.event) if asked.record is not None else None
            yield ("call", asked.call), Given(asked.run, asked.node, dict(asked.inputs), event, m.subject, asked)
        elif subjects.matches("dspex.*.edge.>", m.subject):
            for event in unpack_frame(m.data):
                yield ("event", event.origin.id), Given(event.origin.run, event.node, None, event, m.subject)
        elif subjects.matches("dspex.*.dead.>", m.subject):
            letter = Letter.unpack(m.data)
            said = {name: letter.error.get(name) for name in ("type", "message")}
            id, run = letter.event.call or letter.event.origin.id, letter.event.origin.run
            yield ("letter", id), Given(run, f"letter at {letter.node}", said)
        else:
            read = plain(m)
            data = codecs.decode(read.data, content_type(read.headers))
            one = Given(m.headers.get(subjects.RUN, ""), m.subject, data, None, m.subject, None, m)
            yield ("output", m.headers.get(subjects.EVENT_ID, "")), one
    except DataError:  # in the object store, or sealed
        return
