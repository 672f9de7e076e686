"""The pause of a profile whose provider said 429: no pool of the application calls it until then.

Pools tell each other over core NATS. One that has not heard it finds out by its own next call.
"""

from __future__ import annotations

import asyncio
from typing import Final

import orjson
import structlog
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.errors import BusError, DecodeError, RateLimited, is_seconds
from dspex.bus.message import Message
from dspex.bus.port import Bus, Subscription
from dspex.bus.records import CallRecord
from dspex.workers.config import PoolConfig
from dspex.workers.limits.refusals import is_refusal

log = structlog.get_logger("dspex.workers")

SHORTEST: Final = 1.0  # seconds of a pause; providers that do not say how long mean a moment
LONGEST: Final = 86400.0  # seconds that are believed


class _Said(TypedDict):
    lm: str
    seconds: float


class Cooling:
    """Which profiles have a pause."""

    def __init__(self, bus: Bus, config: PoolConfig) -> None:
        self._bus, self._config = bus, config
        self._subject = subjects.cooling(config.app)
        self._until: dict[str, float] = {}  # profile → on the loop's clock
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Hear the others. Raises BusError."""
        self._subscription = await self._bus.subscribe(self._subject, self._told)

    async def stop(self) -> None:
        if self._subscription is not None:
            await self._subscription.close()

    def refuses(self, lm: str) -> RateLimited | None:
        """Why the profile cannot be asked now; None where it can."""
        if not self._until or (until := self._until.get(lm)) is None:
            return None
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            del self._until[lm]
            return None
        why = f"lm.{lm}: its provider asked for a pause, which ends in {left:,.1f} s"
        return RateLimited(why, node=f"lm.{lm}", retry_after=left)

    @property
    def pauses_any(self) -> bool:
        """Whether a profile may be paused."""
        return bool(self._until)

    @property
    def pauses(self) -> dict[str, float]:
        """Seconds that are left, by profile."""
        now = asyncio.get_running_loop().time()
        return {lm: until - now for lm, until in self._until.items() if until > now}

    def hear(self, record: CallRecord, *, of_users: bool) -> None:
        """A record of a call that was made: whether a provider has asked for a pause.

        `of_users`: it ran code of users, which may raise RateLimited too, for a service of theirs: that names no operator.
        """
        for one in record.routing:
            if one.why == "RateLimited":
                self._heard(one.lm, one.wait)
        error = record.error
        if (
            error is not None
            and error.get("type") == "RateLimited"
            and not is_refusal(error)
            and not (of_users and record.node and not error.get("node"))
        ):
            self._heard(record.lm, error.get("retry_after"))

    def _heard(self, lm: str, after: object) -> None:
        seconds = min(max(SHORTEST, after if is_seconds(after) else SHORTEST), LONGEST)
        if lm not in self._config.profiles or not self._begin(lm, seconds):
            return
        log.warning("a provider asked for a pause", lm=lm, seconds=round(seconds, 1))
        try:
            self._bus.tell(self._subject, orjson.dumps({"lm": lm, "seconds": seconds}))
        except BusError as error:
            log.warning("other pools were not told", lm=lm, why=error.message)

    async def _told(self, message: Message) -> None:
        try:
            said: _Said = checked(_Said, "what a pool says of a profile", orjson.loads(message.data))
        except (DecodeError, ValueError) as error:
            log.warning("what no pool says is left out", subject=self._subject, why=str(error))
            return
        if said["lm"] in self._config.profiles and is_seconds(said["seconds"]):
            self._begin(said["lm"], min(said["seconds"], LONGEST))

    def _begin(self, lm: str, seconds: float) -> bool:
        """Whether the pause is longer than the one that is known."""
        until = asyncio.get_running_loop().time() + seconds
        if until <= self._until.get(lm, 0.0) + 0.05:
            return False
        self._until[lm] = until
        return True
