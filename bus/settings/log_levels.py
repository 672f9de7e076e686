"""Levels of logging as `telemetry.log` says them."""

from __future__ import annotations

from dspex.bus.errors import ConfigError

_LOGGERS = ("dspex", "dspex.engine", "dspex.workers", "dspex.programs", "dspex.bus")  # those of libraries are not ours
LEVELS = ("debug", "info", "warning", "error")


def log_levels(text: str) -> dict[str, str]:
    """The level of each logger of "info,dspex.engine=debug"; a level without a name is that of "dspex", which is all of ours.

    Raises ConfigError (DX121) for a level, or a logger of dspex, that does not exist.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, _, level = part.strip().rpartition("=")
        if level.lower() not in LEVELS:
            fix = f"one of {', '.join(LEVELS)}; or for one part: info,dspex.engine=debug"
            raise ConfigError(f"there is no log level {level!r}", code="DX121", node="telemetry.log", fix=fix)
        if name.startswith("dspex.") and name not in _LOGGERS:
            fix = f"one of {', '.join(_LOGGERS)}"
            raise ConfigError(f"there is no logger {name!r}", code="DX121", node="telemetry.log", fix=fix)
        found[name or "dspex"] = level.lower()
    return found
