"""What reader, scan and work queue have in common: consumers, pulls, and what a delivery tells about itself."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from dspex.bus.errors import BusError
from dspex.bus.nats import protocol
from dspex.bus.nats.connection import Connection
from dspex.bus.nats.failures import NO_CONSUMER, ServerRefusal, what_a_server_says

HEARTBEAT: Final = 2.0  # seconds between two signs of life of a pull; two missed ones are trouble
EXPIRES: Final = 30.0  # seconds after which a pull ends by itself and is asked again
NANOSECONDS: Final = 1_000_000_000
STATUS: Final = b"NATS/1.0 "  # how the headers begin of what is no delivery: a heartbeat, or the end of a pull
MAX_ACK_PENDING: Final = 10_000
LISTED: Final = 8  # consumers of a reading user, at a time
_new = tuple.__new__  # the class itself as constructor takes twice as long
_EXISTS: Final = {10105, 10148}


class DeliveryInfo(NamedTuple):
    """Where a delivery stands, as its reply subject tells. `number`: among those of the consumer, from 1."""

    delivered: int
    sequence: int
    number: int
    time: float
    pending: int


def delivery_of(reply: bytes) -> DeliveryInfo:
    """$JS.ACK[.<domain>.<account>].<stream>.<consumer>.<delivered>.<sequence>.<number>.<time>.<pending>[.<random>]"""
    words = reply.split(b".")
    first = 4 if len(words) == 9 else 6  # with a domain there are 11, or 12 with the random token at the end
    delivered, sequence, number, time, pending = words[first : first + 5]
    at = int(time) // 1000 / 1e6  # whole microseconds, as everywhere: a message's time tells whether it is the same one
    return _new(DeliveryInfo, (int(delivered), int(sequence), int(number), at, int(pending)))


class Deliveries:
    """Tells what a consumer delivers from what others publish to its inbox.

    A delivery's reply is where it is acknowledged, and the server refuses what a client publishes with such a reply.

    Attributes:
        begin: how the replies of this consumer begin.
    """

    def __init__(self, stream: str, consumer: str) -> None:
        self._words = [stream.encode(), consumer.encode()]
        self.begin = b"$JS.ACK.%b.%b." % (self._words[0], self._words[1])

    def has(self, reply: bytes) -> bool:
        """Whether a message with this reply is a delivery of the consumer."""
        if reply.startswith(self.begin):
            return True
        words = reply.split(b".", 6)  # as it is with a domain, which shows with the first one
        if len(words) < 7 or words[:2] != [b"$JS", b"ACK"] or words[4:6] != self._words:
            return False
        self.begin = b".".join(words[:6]) + b"."
        return True


def pass_over(connection: Connection, name: str) -> None:
    """Say that somebody else published to the inbox of a consumer."""
    connection.events.error(f"what another client published to the inbox of {name} is passed over")


def ordered(name: str, filters: Sequence[str], after: int, idle: float, *, bodies: bool = True) -> dict[str, object]:
    """The configuration of an ordered pull consumer, which is gone by itself after `idle` seconds without a pull."""
    return {
        "name": name,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": after + 1,
        "ack_policy": "none",
        "replay_policy": "instant",
        "filter_subjects": list(filters),
        "inactive_threshold": int(idle * NANOSECONDS),
        "mem_storage": True,
        "num_replicas": 1,
        **({} if bodies else {"headers_only": True}),
    }


def shared(name: str, pattern: str, ack_wait: float, after: int) -> dict[str, object]:
    """The configuration of a durable consumer that many processes pull work from."""
    start = {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1} if after else {"deliver_policy": "all"}
    return {
        "name": name,
        "durable_name": name,
        **start,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait * NANOSECONDS),
        "max_deliver": -1,
        "max_ack_pending": MAX_ACK_PENDING,
        "filter_subject": pattern,
        "replay_policy": "instant",
    }


async def share(connection: Connection, stream: str, config: Mapping[str, object]) -> None:
    """Create a durable consumer, unless one of its name is there."""
    try:
        await create(connection, stream, config)
    except ServerRefusal as e:
        if e.number not in _EXISTS:
            raise


async def waiting(connection: Connection, stream: str, name: str) -> int | None:
    """How many messages wait in a consumer; None where there is none. Raises BusError where there is no such stream."""
    found = await info(connection, stream, name)
    with what_a_server_says():
        return int(found["num_pending"]) if found is not None else None


async def info(connection: Connection, stream: str, name: str) -> Mapping[str, Any] | None:
    """What the server says of a consumer; None where there is none. Raises BusError where there is no such stream."""
    try:
        return await connection.api(f"CONSUMER.INFO.{stream}.{name}", None)
    except ServerRefusal as e:
        if e.number != NO_CONSUMER:
            raise
        return None


def listed(inbox_prefix: str) -> list[str]:
    """The names of consumers that a user with this inbox prefix may have: few, so that permissions can list them."""
    return [f"{inbox_prefix.removeprefix('_')}-{number}" for number in range(LISTED)]


async def create_listed(connection: Connection, stream: str, config: Mapping[str, object]) -> tuple[str, int]:
    """Create a consumer under one of the names that permissions list, and that nobody uses; its name, and as `create`.

    Raises BusError, also where all are used.
    """
    names = listed(connection.options.inbox_prefix)
    for name in random.sample(names, len(names)):
        # Two that are equal would be one to the server, and each would get half of the messages.
        config = {**config, "name": name, "metadata": {"reader": connection.fresh() + connection.id}}
        try:
            return name, await create(connection, stream, config)
        except ServerRefusal as e:
            if e.number not in _EXISTS:
                raise
    fix = "end one of them; one that was killed is forgotten after five minutes"
    raise BusError(f"user {connection.options.inbox_prefix} reads {stream} {LISTED} times already", fix=fix)


async def create(connection: Connection, stream: str, config: Mapping[str, object]) -> int:
    """Create a consumer; the number of messages that wait for it. Raises BusError."""
    filters = config.get("filter_subjects")
    where = f"CONSUMER.CREATE.{stream}.{config['name']}"
    if isinstance(filters, list) and len(filters) == 1:
        # In the subject, so that permissions can say who may read what. The server compares it with the configuration.
        config = {**config, "filter_subject": filters[0]}
        where = f"{where}.{filters[0]}"
        del config["filter_subjects"]
    answer = await connection.api(where, {"stream_name": stream, "config": config, "action": "create"})
    with what_a_server_says():
        return int(answer.get("num_pending", 0))


def drop(connection: Connection, stream: str, name: str) -> None:
    """Delete a consumer, if it is there; "" for none. Nobody waits for the answer: that would be a round trip for what the
    server does by itself after a while, so what comes next must not need the name again.
    """
    if name and connection.up.is_set():
        connection.put(protocol.message(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"", None, limit=connection.max_payload))


def pulls(stream: str, name: str) -> str:
    """The subject that the pulls of a consumer go to."""
    return f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"


def pull(subject: str, reply: str, **request: object) -> bytes:
    """A pull request as sent to `subject`; its messages and its end go to `reply`."""
    body = json.dumps(request).encode()
    return protocol.message(subject, body, None, reply=reply, limit=len(body))


def rest(headers: protocol.Headers) -> int | None:
    """How many messages of a pull will not come any more, at its ordinary end; None when the consumer may be gone.

    A deleted consumer says how many, too; but a pull that follows at once could still reach it, and wait for nothing.
    """
    status, why = headers.get("Status"), headers.get("Description", "")
    ordinary = status == "408" or (status == "409" and ("MaxBytes" in why or why == "Batch Completed"))
    left = headers.get("Nats-Pending-Messages", "0")
    return int(left) if ordinary and left.isdecimal() and len(left) < 10 else None
