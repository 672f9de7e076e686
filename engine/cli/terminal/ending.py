"""How a verb is ended from outside: SIGTERM does what ^C does, so that what a verb leaves in order for one it does for both."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, Self


class Interrupted(Exception):
    """A verb was ended by a signal: in the place of a KeyboardInterrupt."""


@contextmanager
def interruptible() -> Generator[None]:
    """Raises Interrupted, where typer would make an exit code of its own of it, or an Abort, by its version."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted from error


DRAINING: Final = frozenset(("run", "worker", "gateway", "ui"))
"""Verbs that drain: who sees that they handle SIGTERM may rely on that."""


class Ending:
    """Wait for SIGTERM as long as this is entered, where none of the words is a verb that drains, and has signals of its own.

    Attributes:
        number: of the signal that ended it, where one did.
    """

    def __init__(self, words: Collection[str]) -> None:
        self.number, self._drains = signal.SIGINT, not DRAINING.isdisjoint(words)
        self._before: Any = None

    def __enter__(self) -> Self:
        # signals come to the main thread, and are those of whose process it is
        mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        self._before = signal.signal(signal.SIGTERM, self._end) if mine and not self._drains else None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        interrupt = signal.getsignal(signal.SIGINT)  # while an event loop runs, it cancels what runs there
        (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)

    def code(self, error: BaseException | None, say: Callable[[str], None]) -> int:
        """The exit code, by what made a verb end; and a line for people, with what the error says. A prompt's no is 1."""
        if not isinstance(error, KeyboardInterrupt):
            return 1
        how = "interrupted" if self.number == signal.SIGINT else f"ended by {self.number.name}"
        say(": ".join([how, *map(str, error.args)]))
        return 128 + self.number
