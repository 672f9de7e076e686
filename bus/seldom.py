"""A log that stays readable while something fails again and again: the same thing is said at most once a minute."""

from __future__ import annotations

import asyncio
from typing import Any, Final

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
