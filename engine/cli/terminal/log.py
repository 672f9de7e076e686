"""Logging: structlog over the standard library, so that one set of levels rules ours and everybody else's.

For people on a terminal, one JSON object a line anywhere else. Always on stderr: stdout belongs to results.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, ExcInfo, Processor

from dspex.bus.settings.log_levels import log_levels
from dspex.engine.cli.terminal.printable import printable

_OURS = "dspex"
_OF_LINES = ("exception", "stack")  # tracebacks


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
    handler = _Stderr()
    last = _for_people() if (sys.stderr.isatty() if people is None else people) else _as_json()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbosity > 1 else logging.ERROR if quiet else logging.WARNING)
    for name, level in log_levels(spec).items():
        logging.getLogger(name).setLevel(level.upper())
    if quiet or verbosity:
        logging.getLogger(_OURS).setLevel(logging.ERROR if quiet else logging.DEBUG)


@contextmanager
def without(name: str) -> Generator[None]:
    """Nothing of a logger below what is critical: an engine that does something again has said all of it before."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is when something is logged: while something is drawn there in place, that is not the file."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _for_people() -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=_traceback)
    return [structlog.stdlib.ProcessorFormatter.remove_processors_meta, _printable, renderer]


def _traceback(out: TextIO, error: ExcInfo) -> None:
    """Only what Python says: the message of an exception may be another's text, and local variables hold the data of events."""
    out.write("\n" + printable("".join(traceback.format_exception(*error)).rstrip(), lines=True))


def _printable(logger: object, name: str, entry: EventDict) -> EventDict:
    """What is logged of others' texts; what is written as JSON has its control characters written out anyhow."""
    return {
        printable(key): printable(value, lines=key in _OF_LINES) if isinstance(value, str) else value
        for key, value in entry.items()
    }


def _as_json() -> list[Processor]:
    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),  # they hold the data of events
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
