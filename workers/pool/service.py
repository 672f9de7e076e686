"""The NATS service protocol (ADR-32): `nats micro ls`, `info` and `stats` show a pool as any other service.

Each process of a pool is an instance of the service. It is asked on `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`; with its name
behind that, and then its id, to ask one kind or one process. One that was drained is no instance until it is taken back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import orjson

from dspex.bus import subjects, telemetry
from dspex.bus.message import Message
from dspex.bus.port import Subscription
from dspex.bus.records import CallRecord, CallRequest

if TYPE_CHECKING:
    from dspex.workers.pool.pool import Pool

TYPES: Final = {verb: f"io.nats.micro.v1.{verb.lower()}_response" for verb in subjects.SERVICE_VERBS}
MOST_SHOWN: Final = 200  # characters of an error


class PoolService:
    """What a pool says as a service. `heard` is to be called with the record of each interactive call.

    Attributes:
        requests: interactive calls that were answered.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool, self._version = pool, version("dspex")
        self._started = datetime.now(UTC)
        self.requests = self._errors = self._nanoseconds = 0
        self._last_error = ""
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Answer from now on."""
        c, bus = self._pool.config, self._pool.bus
        for pattern in subjects.service_patterns(c.app, c.name, self._pool.id):
            self._subscriptions.append(await bus.subscribe(pattern, self._answer))

    async def stop(self) -> None:
        """Answer no more."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.close()

    def heard(self, work: CallRequest, record: CallRecord) -> None:
        """Count an interactive call, and say that it is answered."""
        if telemetry.listeners:
            telemetry.emit("answered", pool=self._pool.config.name, work=work, record=record)
        self.requests += 1
        self._nanoseconds += int(record.elapsed * 1e9)
        if record.error is not None:
            self._errors += 1
            self._last_error = f"{record.error['type']}: {record.error['message']}"[:MOST_SHOWN]

    async def _answer(self, message: Message) -> None:
        verb = message.subject.split(".")[1]
        if verb in TYPES and subjects.is_inbox(message.reply):
            await self._pool.bus.send(message.reply, orjson.dumps(self._said(verb)))

    def _said(self, verb: str) -> dict[str, object]:
        c = self._pool.config
        said: dict[str, object] = {
            "type": TYPES[verb],
            "name": subjects.service(c.app, c.name),
            "id": self._pool.id,
            "version": self._version,
            "metadata": {"app": c.app, "pool": c.name, "dspy_version": self._pool.children.hello.dspy_version},
        }
        endpoint: dict[str, object] = {"name": "call", "subject": subjects.call_pattern(c.app, c.name), "queue_group": c.name}
        if verb == "INFO":
            said |= {"description": f"calls of pool {c.name}", "endpoints": [{**endpoint, "metadata": {}}]}
        elif verb == "STATS":
            counted = {
                "num_requests": self.requests,
                "num_errors": self._errors,
                "last_error": self._last_error,
                "processing_time": self._nanoseconds,
                "average_processing_time": self._nanoseconds // max(1, self.requests),
                "data": {"durable": self._pool.work.served, "busy": self._pool.children.slots.busy},
            }
            said |= {"started": f"{self._started:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z", "endpoints": [{**endpoint, **counted}]}
        return said
