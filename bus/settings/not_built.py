"""Settings of the design that this version does not have. Each is refused: a limit that is not kept is false safety."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

CODE: Final = "DX108"
_LEAVE_OUT = "leave it out"

SETTINGS: Mapping[str, str] = {  # pattern of a dotted key → the fix
    "http": _LEAVE_OUT,
    "calls": _LEAVE_OUT,
    "budgets": _LEAVE_OUT,
    "server.inbox_prefix": _LEAVE_OUT,
    "engine.heartbeat": "leave it out; engine.lease says after how long a silent engine is replaced",
    "engine.commit.max_wait": _LEAVE_OUT,
    "engine.claim_check_above": _LEAVE_OUT,
    "engine.state_limit": _LEAVE_OUT,
    "engine.align": _LEAVE_OUT,
    "engine.max_bytes": _LEAVE_OUT,
    "engine.encrypt_key_env": _LEAVE_OUT,
    "defaults.call.inputs": "set it at the operator whose inputs they are",
    "defaults.call.fallback": "set it at the operator whose outputs it gives",
    **{
        f"defaults.call.{option}": _LEAVE_OUT
        for option in ("affinity", "cache", "cost", "priority", "tenant", "lane", "first_token_timeout", "hedge")
    },
    "lm.*.limits": _LEAVE_OUT,
    "lm.*.breaker": _LEAVE_OUT,
    "lm.*.price.cached": _LEAVE_OUT,
    "pools.*.cpu": _LEAVE_OUT,
    "pools.*.timeout": "leave it out; timeout= at the operator, or defaults.call.timeout",
    "pools.*.scale": _LEAVE_OUT,
    "pools.*.hmac_key_env": _LEAVE_OUT,
    "telemetry.metrics": _LEAVE_OUT,
    "telemetry.content": _LEAVE_OUT,
    "telemetry.redact": _LEAVE_OUT,
}


def fix_of(key: str) -> str | None:
    """What to do about a setting that is not built; None where `key` is no such setting."""
    return next((fix for pattern, fix in SETTINGS.items() if fnmatchcase(key, pattern)), None)
