"""Where payloads are stored in clear text: only where nobody has them sealed. See keyring.py."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from typing import Final, NamedTuple

import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, ConfigError
from dspex.bus.port import Bus

SETTING: Final = "engine.encrypt_key_env"
AGAIN: Final = 60.0  # seconds until it is asked again: an application may begin to seal
_log = structlog.get_logger("dspex.bus")


class _Asked(NamedTuple):
    """When applications were seen to seal nothing, on a connection. `turn`: of who asks."""

    turn: asyncio.Lock
    in_clear_text: dict[str, float]


_ASKED: Final = weakref.WeakKeyDictionary[Bus, _Asked]()  # of each connection


async def may_store(bus: Bus, app: str) -> None:
    """Raise ConfigError (DX124) where a client would store in clear text what others seal. It asks once a minute."""
    if bus.sealing is not None:
        return
    asked = _ASKED.setdefault(bus, _Asked(asyncio.Lock(), {}))
    async with asked.turn:  # also once it is known: who came while it was asked goes on in that order
        if time.monotonic() - asked.in_clear_text.get(app, -math.inf) < AGAIN:
            return
        try:
            await need_none(bus, app)
        except BusError as e:
            if e.retryable:
                raise
            _log.debug("it is not known whether payloads are sealed", app=app, why=e.message)  # it may not look
        asked.in_clear_text[app] = time.monotonic()


async def need_none(bus: Bus, app: str) -> None:
    """Raise ConfigError (DX124) where the payloads of an application are sealed: this process has no key."""
    if await bus.has("stream", subjects.keys(app)):
        raise ConfigError(
            f"the payloads of {app} are sealed, and no key is named here",
            code="DX124",
            fix=f'name the variable that has it: {SETTING} = "NAME"',
            node=SETTING,
        )
