"""Steps of runs: the attempts at calls, as their records say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from dspex.bus import codecs
from dspex.bus.message import Message
from dspex.bus.records import CallRecord, NodeEvent, Usage, unpack_event


@dataclass(frozen=True)
class Step:
    """One attempt at a call, as recorded. `id`: `node#ordinal` within the run; it does not depend on worker or attempt."""

    id: str
    node: str
    event: str
    inputs: Any
    outputs: Any
    route: str | None
    lm: str | None
    program: str | None
    worker: str | None
    started: datetime
    elapsed: timedelta
    usage: Usage
    error: str | None
    run: str = ""
    call: str = ""
    attempt: int = 1


def steps(stored: Iterable[Message]) -> list[Step]:
    """The records among messages of inboxes, in their order."""
    found: list[Step] = []
    ordinals: dict[tuple[str, str], list[str]] = {}
    for message in stored:
        record = CallRecord.unpack(message.data)
        event = unpack_event(record.event)
        calls = ordinals.setdefault((event.origin.run, record.node), [])
        if record.call not in calls:
            calls.append(record.call)
        found.append(_step(record, event, calls.index(record.call)))
    return found


def _step(o: CallRecord, event: NodeEvent, ordinal: int) -> Step:
    return Step(
        id=f"{o.node}#{ordinal}",
        node=o.node,
        event=event.origin.id,
        inputs=codecs.decode(event.data, event.content_type),
        outputs=None if o.outputs is None else dict(o.outputs),
        route=o.route,
        lm=o.lm or None,
        program=o.program or None,
        worker=o.worker or None,
        started=datetime.fromtimestamp(o.started, tz=UTC),
        elapsed=timedelta(seconds=o.elapsed),
        usage=Usage(**o.usage),
        error=None if o.error is None else str(o.error.get("message", "")),
        run=event.origin.run,
        call=o.call,
        attempt=o.attempt,
    )
