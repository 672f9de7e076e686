"""Requests of models that synchronous programs make in their threads: on the loop, where they can be cancelled and streamed.

A thread cannot be ended, and what it waits for at a socket goes on after its call. On the loop the connection is closed at
once, and the thread that waits for it gets an error.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Final

import dspy

from dspex.bus.errors import Cancelled
from dspex.workers.dspy.versions import installed

_THREADS: Final = "dspex_threads"  # beside DSPy's own settings, as in replies.py
_CALL, _ACALL = dspy.BaseLM.__call__, dspy.BaseLM.acall


class Threads:
    """The requests of one call. Made on the loop that it belongs to.

    `judge`: what is to be raised for an error of a model's, and for the end of the call; by default that error itself.
    """

    def __init__(self, judge: Callable[[BaseException], BaseException] = lambda error: error) -> None:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._judge = judge
        self._lock = threading.Lock()
        self._open: set[Future[Any]] = set()
        self._ended = False

    def settings(self) -> dict[str, Any]:
        """For `dspy.context`."""
        return {_THREADS: self}

    @property
    def elsewhere(self) -> bool:
        """Whether this is another thread than the loop's."""
        return threading.get_ident() != self._thread

    def ask(self, lm: Any, *args: Any, **kwargs: Any) -> Any:
        """What the model says, asked on the loop. Raises Cancelled where the call is over."""
        return self.run(lambda: _ACALL(lm, *args, **kwargs))

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What a coroutine gives, on the loop. Raises Cancelled where the call is over."""
        with self._lock:
            if self._ended:
                raise self._judge(Cancelled("the call is over"))
            asked = asyncio.run_coroutine_threadsafe(work(), self._loop)
            self._open.add(asked)
        try:
            return asked.result()
        except CancelledError:
            raise self._judge(Cancelled("the call is over")) from None
        except installed.ERRORS as error:
            if (judged := self._judge(error)) is error:
                raise
            raise judged from error
        finally:
            with self._lock:
                self._open.discard(asked)

    def end(self) -> None:
        """The call is over: what is still asked ends, and nothing more is asked."""
        with self._lock:
            self._ended = True
            left = list(self._open)
        for asked in left:
            asked.cancel()


def look() -> None:
    """Have every `dspy.LM` be asked on the loop, in calls that have `Threads`, also one that a program makes itself."""
    if dspy.BaseLM.__call__ is not _asked:
        dspy.BaseLM.__call__ = _asked


def streams(lm: Any) -> bool:
    """Whether a model can be streamed in this thread: it is asked on the loop."""
    return _on_loop(lm) is not None


def _asked(self: Any, *args: Any, **kwargs: Any) -> Any:
    threads = _on_loop(self)
    return _CALL(self, *args, **kwargs) if threads is None else threads.ask(self, *args, **kwargs)


def _on_loop(lm: Any) -> Threads | None:
    """Where to ask instead; None: here. A user's own kind of model may have no asynchronous half."""
    threads: Threads | None = dspy.settings.get(_THREADS)
    if threads is None or not threads.elsewhere or type(lm) is not dspy.LM:
        return None
    engine, other = (getattr(lm, name, None) for name in ("_engine_spec", "_async_engine_spec"))
    return threads if engine is None or isinstance(engine, str) or other is not None else None
