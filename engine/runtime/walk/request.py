"""What a walk emits, as it is stored: events for sinks, and requests for executions of calls, with the rows that a call has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from dspex.bus import subjects
from dspex.bus.codecs import cloud_events, tracing
from dspex.bus.errors import InvalidInput, OutputTooLarge
from dspex.bus.message import derived_id, in_session
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRequest, NodeEvent, Origin, RecordTo
from dspex.bus.serving.call_spec import live_within
from dspex.bus.serving.programs.names import may_mean
from dspex.bus.subjects import CAUSE, EVENT_ID, RECORD, RUN
from dspex.engine.graph.nodes import Call, CallNode, Sink
from dspex.engine.log.rows import OpenCall, Timer

DIGEST = 16  # bytes: what an open call keeps of its event, salted with the nonce of its record's id: a record must have both
SALT = 16  # bytes of the nonce: all that it has
TENANT = 4  # open calls of a tenant in one partition; those beyond them wait in its side queue
MOST_SUBJECT = 512  # characters of a subject; a server takes lines of 4096 bytes, and the line has more than the subject


@dataclass(frozen=True)
class Address:
    """Who walks: a partition of a stage, as its subjects and ids name it.

    `nonce`: drawn by the claim, so that ids of records are never repeated, and not to be guessed.
    """

    app: str
    topology: str
    stage: str
    partition: int
    nonce: str
    limit: int  # bytes that one payload may have
    state: int = 256 << 20  # bytes that the state of a partition may have

    def node_id(self, node: str) -> str:
        """What the ids of a node's outputs are derived from, besides the event: unique in the application."""
        return f"{self.topology}/{self.stage}/{node}"


class Ask(NamedTuple):
    """A request, with the rows that its call has from then on.

    `asked`, `event`: what lies packed in the message, for who does it again and need not read it.
    """

    message: NewMessage
    number: int
    call: OpenCall
    timer: Timer
    asked: CallRequest
    event: NodeEvent


class Forward(NamedTuple):
    """An event on its way to the partition of its key. All those of a commit for one partition go in one message, a frame.

    Attributes:
        subject: of the other partition's events.
        data: the packed NodeEvent.
        headers: None, as digests of outputs read it; session: of the event.
    """

    subject: str
    data: bytes
    headers: None = None
    session: str | None = None


Output: TypeAlias = NewMessage | Ask | Forward


def request(
    address: Address,
    number: int,
    row: OpenCall,
    call: Call,
    inputs: Mapping[str, object],
    event: NodeEvent,
    clock: float,
) -> Ask:
    """The request for an execution of call `number`, as its row says."""
    a, packed, batch = address, event.pack(), _in_batch(row, call, row.deadline - clock)
    record = RecordTo(
        subject=subjects.record(a.app, row.pool, a.topology, a.stage, a.partition),
        id=f"{a.topology}.{a.stage}.{a.partition}.{number}.{row.try_number}.{a.nonce}",
        number=number,
        event=packed,
    )
    body = CallRequest.at_once(
        call=row.id,
        try_number=row.try_number,
        attempt=event.attempts + row.attempts,
        topology=a.topology,
        node=row.node,
        spec=call.spec,
        inputs=inputs,
        run=event.origin.run,
        session=event.origin.session,
        timeout=call.timeout,
        left=row.deadline - clock,
        invalid=row.invalid,
        alone=row.alone,
        record=record,
        opened=row.deadline - call.deadline,
        tenant=row.tenant,
        answer=call.answer,
        turn=call.turn if event.origin.session else None,
        affinity=(event.origin.key or event.origin.session) if call.affinity != "none" and not batch else None,
        required=call.affinity == "require" and not batch,
        batch=batch,
        state=row.state if may_mean(call.spec.state, row.state) else "",
    )
    band = subjects.band(call.priority, behind=row.tenant if subjects.is_behind(row.band) else None)
    subject = subjects.work(a.app, row.pool, a.topology, row.node, band)
    headers = {RUN: event.origin.run, CAUSE: row.id, RECORD: record.id}
    if event.origin.session is not None:
        headers |= in_session(event.origin.session)
    message = NewMessage(subject, body.pack(), headers)
    digest = blake2b(packed, digest_size=DIGEST, salt=a.nonce.encode()[:SALT]).digest()
    row = row._replace(digest=digest, work=0, held=0, band=band)
    return Ask(message, number, row, Timer(row.deadline, "deadline"), body, event)


def _in_batch(row: OpenCall, call: Call, left: float) -> float:
    """Seconds that a call may wait for the answer of a batch: what is left then is for asking live, twice at least."""
    if call.spec.lane != "batch" or row.live:
        return 0.0
    return max(0.0, left - live_within(call.timeout, call.deadline))


def open_call(walk: Any, node: CallNode, data: object, body: bytes, content_type: str, call: str | None, attempts: int) -> None:
    """Open a call in a walk: its request is an output. `call`: its id, where it was open before. Raises DataError."""
    address: Address = walk.address
    origin = walk.origin
    asked_for = node.call if node.call.of is None else node.call.for_event(data, origin.subject)
    if asked_for.affinity == "require" and not (origin.key or origin.session):
        why = 'affinity="require" asks for the worker of a key or session, and the event has neither'
        raise InvalidInput(why, node=node.name, fix="key_by(…) before the call, or publish with key= or session=")
    inputs = asked_for.inputs(data)
    if call is None:
        ordinal = walk.counts[node.name] = walk.counts.get(node.name, -1) + 1
        call = derived_id(origin.id, address.node_id(node.name), ordinal)
    if len(body) > address.limit:
        raise too_large(node.name, len(body), address.limit)
    event = NodeEvent(node.name, origin, content_type, body, call, attempts=attempts)
    row = OpenCall(
        node=node.name,
        id=call,
        run=origin.run,
        pool=asked_for.pool,
        deadline=walk.clock + asked_for.deadline,
        digest=b"",
        key=origin.key if node.call.order == "key" else (origin.key or None) if node.call.order == "serial" else None,
        time=origin.time,
        tenant=asked_for.tenant(data) if asked_for.tenant is not None else None,
    )
    if row.tenant is not None and _has_enough(walk.tables.calls.rows, row):
        row = row._replace(band=subjects.band(asked_for.priority, behind=row.tenant))
    asked = request(address, walk.number, row, asked_for, inputs, event, walk.clock)
    if (size := len(asked.message.data) - len(body)) > address.limit:  # expressions may make more of the data
        raise too_large(f"the inputs of {node.name}", size, address.limit)
    walk.outputs.append(asked)
    walk.number += 1


def _has_enough(rows: Mapping[int, OpenCall], row: OpenCall) -> bool:
    """Whether calls of its tenant are open that a pool would take before it: those of others shall not wait behind it, too."""
    same = (one for one in rows.values() if one.tenant == row.tenant and one.pool == row.pool)
    return sum(1 for _ in islice(same, TENANT)) == TENANT


def cloud_event(
    address: Address, sink: Sink, origin: Origin, to: str, headers: dict[str, str], body: bytes, content_type: str
) -> bytes:
    """The body of a sink's event as a CloudEvent. `headers`: of the event; those that say what it is are added."""
    assert sink.cloudevents is not None
    attributes = {
        "id": headers[EVENT_ID],
        "source": f"/dspex/{quote(address.topology)}/{quote(sink.subject)}",
        "type": to,
        "subject": origin.key or None,
        "time": cloud_events.rfc3339(origin.time),
        "correlationid": origin.run,
        "causationid": origin.id,
    }
    if origin.trace is not None:
        attributes["traceparent"], state = tracing.parted(origin.trace)
        attributes["tracestate"] = state or None
    said = {name: value for name, value in attributes.items() if value is not None}
    body, more = cloud_events.write(sink.cloudevents, said, body, content_type)
    headers.update(more)
    return body


def too_large(node: str, size: int, most: int) -> OutputTooLarge:
    return OutputTooLarge(f"{node}: {size:,} bytes, and one payload may have {most:,}", node=node)


def checked_subject(sink: Sink, data: object) -> str:
    """Where an event goes, by its data. Raises InvalidInput for what is no subject."""
    subject = sink.address(data) if sink.address is not None else sink.subject
    # The server closes the connection over a longer one: the commit would never get an answer.
    if not subjects.is_subject(subject) or len(subject) > MOST_SUBJECT or not subjects.matches(sink.pattern, subject):
        raise InvalidInput(
            f"{sink.subject} gives {subject[:200]!r}, which is no subject of {sink.pattern}",
            node=sink.subject,
            fix="fields in a sink's subject must be single short words without '.', '*', '>' or spaces",
        )
    return subject
