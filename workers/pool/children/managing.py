"""What operators ask of the processes of a pool. Each process answers twice: when it begins, and when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NotRequired

import orjson
import structlog
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import BusError, DecodeError, DspexError, is_seconds
from dspex.bus.message import Message
from dspex.bus.port import Subscription
from dspex.bus.tasks import Tasks

if TYPE_CHECKING:
    from dspex.workers.pool.pool import Pool

log = structlog.get_logger("dspex.workers")
GRACE: Final = 30.0  # seconds that calls have to end, where an order does not say


class PoolOrder(TypedDict):
    """What is asked.

    Attributes:
        kind: "drain": take nothing more, until a restart; "restart": have new children, which import everything anew; "look":
            have as many as there shall be; "cancel": end calls of runs that are cancelled.
        process: the id of the only process that is meant.
        grace: seconds that calls have to end, of a drain.
        calls: that are cancelled, each with the attempt up to which that holds: one that is redriven later is made.
    """

    kind: Literal["drain", "restart", "look", "cancel"]
    process: NotRequired[str | None]
    grace: NotRequired[float]
    calls: NotRequired[dict[str, int]]


class Managing:
    """Does what operators ask of one process of a pool, one thing after another."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._doing = ""
        self._subscription: Subscription | None = None
        self._tasks = Tasks(f"orders of {pool.config.name}", lambda name, error: log.error("not done", exc_info=error))

    async def start(self) -> None:
        """Hear, from now on. Raises BusError."""
        config = self._pool.config
        self._subscription = await self._pool.bus.subscribe(subjects.manage(config.app, config.name), self._on_request)

    async def stop(self) -> None:
        """Hear no more, and give up what is not done."""
        if self._subscription is not None:
            await self._subscription.close()
        await self._tasks.stop()

    async def _on_request(self, message: Message) -> None:
        try:
            order = read_order(message.data)
        except DecodeError as error:
            log.debug("no order", pool=self._pool.config.name, why=error.message)
            return
        if order.get("process") not in (None, self._pool.id):
            return
        grace = order.get("grace", GRACE)
        reply = message.reply if subjects.is_inbox(message.reply) else ""
        await self._say(reply, "begun")
        if order["kind"] == "cancel":
            for call, attempt in order.get("calls", {}).items():
                self._pool.executions.cancel(call, attempt)
            await self._say(reply, "done")
        elif self._doing and order["kind"] != "look":
            await self._say(reply, "failed", f"it is busy with a {self._doing}")
        else:
            self._tasks.start(self._do(order["kind"], grace, reply), order["kind"])

    async def _do(self, kind: str, grace: float, reply: str) -> None:
        pool, why = self._pool, ""
        log.info("told by an operator", pool=pool.config.name, order=kind)
        if kind == "look":
            await pool.scaling.look()
        else:
            self._doing = kind
            try:
                await (pool.rest(grace) if kind == "drain" else pool.renew())
            except DspexError as error:
                why = error.message
            finally:
                self._doing = ""
        await self._say(reply, "failed" if why else "done", why)

    async def _say(self, reply: str, state: str, why: str = "") -> None:
        if not reply:
            return
        try:
            await self._pool.bus.send(reply, orjson.dumps({"id": self._pool.id, "state": state, "why": why}))
        except BusError as error:
            log.warning("an operator was not answered", pool=self._pool.config.name, why=error.message)


def read_order(data: bytes) -> PoolOrder:
    """The order in a message. Raises DecodeError."""
    try:
        order: PoolOrder = checked(PoolOrder, "an order to a pool", orjson.loads(data))
    except ValueError as e:
        raise DecodeError(f"not an order to a pool: {e}") from None
    if not is_seconds(order.get("grace", GRACE)):
        raise DecodeError("the grace of an order is no number of seconds")
    return order
