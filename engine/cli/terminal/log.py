"""Logging: structlog over the standard library, so that one set of levels rules ours and everybody else's.

For people on a terminal, one JSON object a line anywhere else. Always on stderr: stdout belongs to results.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import structlog
from structlog.typing import Processor

from dspex.bus.errors import ConfigError

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_OURS = "dspex"


def configure(spec: str = "info", *, verbosity: int = 0, quiet: bool = False, people: bool | None = None) -> None:
    """Set up logging for this process.

    Args:
        spec: `telemetry.log`: levels of ours, "info,dspex.engine=debug".
        verbosity: number of -v: 1 shows our debug lines, 2 those of the libraries too.
        quiet: errors only.
        people: coloured lines instead of JSON; None: if stderr is a terminal.

    Raises:
        ConfigError: DX121, a level that does not exist.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    last = _for_people() if (sys.stderr.isatty() if people is None else people) else _as_json()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbosity > 1 else logging.ERROR if quiet else logging.WARNING)
    for name, level in _levels(spec):
        logging.getLogger(name).setLevel(level)
    if quiet or verbosity:
        logging.getLogger(_OURS).setLevel(logging.ERROR if quiet else logging.DEBUG)


def _levels(spec: str) -> Iterator[tuple[str, int]]:
    for part in spec.split(","):
        name, _, level = part.strip().rpartition("=")
        if level.lower() not in _LEVELS:
            fix = f"one of {', '.join(_LEVELS)}; or for one part: info,dspex.engine=debug"
            raise ConfigError(f"there is no log level {level!r}", code="DX121", node="telemetry.log", fix=fix)
        yield name or _OURS, _LEVELS[level.lower()]


def _for_people() -> list[Processor]:
    return [structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.dev.ConsoleRenderer()]


def _as_json() -> list[Processor]:
    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.dict_tracebacks,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
