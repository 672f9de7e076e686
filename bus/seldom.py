"""A log that stays readable: while something fails again and again the same thing is said at most once a minute, and nothing is
said by an engine that does again what it has said before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

MINUTE: Final = 60.0


class Seldom:
    """Says in `log`, a structlog logger, what it has not said in the last minute. Only within a running event loop."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._said: dict[tuple[str, str], float] = {}

    def warning(self, text: str, **values: object) -> None:
        """Say it as a warning, with its values, unless the same was said just now."""
        if self._is_new(text, values):
            self._log.warning(text, **values)

    def error(self, text: str, **values: object) -> None:
        """Say it as an error, with its values, unless the same was said just now."""
        if self._is_new(text, values):
            self._log.error(text, **values)

    def _is_new(self, text: str, values: dict[str, object]) -> bool:
        now, what = asyncio.get_running_loop().time(), (text, str(values))
        self._said = {said: at for said, at in self._said.items() if now - at < MINUTE}
        if what in self._said:
            return False
        self._said[what] = now
        return True


_silent: ContextVar[bool] = ContextVar("silent", default=False)


def _dropped(log: Any, method: str, entry: EventDict) -> EventDict:
    raise structlog.DropEvent


_NOTHING: Any = structlog.wrap_logger(
    None, processors=[_dropped], wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
)


@contextmanager
def silent() -> Generator[None]:
    """Loggers of `logger` say nothing here, nor in the tasks that are begun here; others in this process go on. Nor does
    telemetry.
    """
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)


def is_silent() -> bool:
    """Whether nothing is to be said here."""
    return _silent.get()


class _Logger:
    """structlog's logger of a name, but where it is to be silent."""

    def __init__(self, name: str) -> None:
        self._log = structlog.get_logger(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(_NOTHING if _silent.get() else self._log, name)


def logger(name: str) -> FilteringBoundLogger:
    """structlog's logger of a name."""
    return cast("FilteringBoundLogger", _Logger(name))
