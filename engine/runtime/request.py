"""The request for an execution of a call, with the rows that the call has from then on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import NamedTuple

from dspex.bus import subjects
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRequest, NodeEvent, RecordTo
from dspex.bus.subjects import CAUSE, RUN
from dspex.engine.graph.nodes import Call
from dspex.engine.log.rows import OpenCall, Timer


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

    def node_id(self, node: str) -> str:
        """What the ids of a node's outputs are derived from, besides the event: unique in the application."""
        return f"{self.topology}/{self.stage}/{node}"


class Ask(NamedTuple):
    """A request, with the rows that its call has from then on."""

    message: NewMessage
    number: int
    call: OpenCall
    timer: Timer


def event_digest(packed: bytes) -> bytes:
    """What an open call keeps of its event."""
    return blake2b(packed, digest_size=16).digest()


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
    a, packed = address, event.pack()
    record = RecordTo(
        subject=subjects.record(a.app, row.pool, a.topology, a.stage, a.partition),
        id=f"{a.topology}.{a.stage}.{a.partition}.{number}.{row.try_number}.{a.nonce}",
        number=number,
        event=packed,
    )
    body = CallRequest(
        call=row.id,
        try_number=row.try_number,
        attempt=event.attempts + row.attempts,
        topology=a.topology,
        node=row.node,
        spec=asdict(call.spec),
        inputs=inputs,
        run=event.origin.run,
        session=event.origin.session,
        timeout=call.timeout,
        left=row.deadline - clock,
        invalid=row.invalid,
        alone=row.alone,
        record=record,
    )
    subject = subjects.work(a.app, row.pool, a.topology, row.node, subjects.band(call.priority))
    message = NewMessage(subject, body.pack(), {RUN: event.origin.run, CAUSE: row.id})
    row = row._replace(digest=event_digest(packed), work=0, held=0)
    return Ask(message, number, row, Timer(row.deadline, "deadline"))
