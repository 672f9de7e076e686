"""What happens, said to whoever subscribed: metrics, tracing, a page. Nothing here knows them.

Each process says what happens in it, at few points: a commit, not every event. With nobody subscribed that costs a look at an
empty tuple. What travels between processes travels in messages and heartbeats, never here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeAlias

import structlog

from dspex.bus.seldom import is_silent

_log = structlog.get_logger("dspex.telemetry")

HAPPENINGS: Final[Mapping[str, str]] = {
    "commit": "topology stage partition arrivals messages bytes seconds sequence: what was taken up to there is durable",
    "handled": "topology stage partition calls arrivals: these are durable, each with its effects, and when it was handled",
    "noted": "topology stage partition told: what came of arrivals that are durable now, but for events that were only taken",
    "record": "topology stage partition node run: the record of a call was taken, and the call is closed",
    "retry": "topology stage partition node run: a call is executed again",
    "fallback": "topology stage partition node run: the fallback's outputs stand in for those of a call",
    "put_off": "topology stage partition node run: the event waits for its time, or a function asked for it later",
    "dropped": "topology stage partition node run: a record of no open call: a repeat, a late one, or garbage",
    "gone": "topology stage partition node run: what a timer is about is stored nowhere any more",
    "dead_letter": "topology stage partition node run error code: an event could not be processed",
    "claimed": "topology stage partition epoch seconds: this engine owns a partition",
    "fenced": "topology stage partition epoch: something that is not of this engine was stored in the log",
    "released": "topology stage partition: this engine gave a partition up",
    "rolled_back": "topology stage partition sequence landed: commits that had landed are not stored any more",
    "stopped": "topology stage code why: a stage reads its source no more",
    "gap": "topology stage partition stream after up_to: events of a source that nobody can read any more were skipped",
    "possible_gap": "topology stage partition stream read first: messages are gone that may have been of the source",
    "snapshot": "topology stage partition bytes sequence: the tables of a partition were stored",
    "refused": "topology stage partition arrivals why: the server refused a commit for what is in it",
    "payloads_removed": "count: payloads that no message names any more were removed",
    "full": "why: the stream takes nothing, and the engine waits",
    "room": ": the stream takes messages again",
    "call_started": "pool topology node call attempt: a worker runs a call",
    "call_ended": "pool topology node call attempt route lm seconds error usage routing: it has a record",
    "answered": "pool work record: an interactive call has its answer",
    "asked": "pool request above seconds error: who made an interactive call has its answer, or waits no longer",
    "request": "pool work kind name digest occurrence usage seconds exchange: a request of a call is in its journal, answered",
    "breaker": "pool what state: the breaker of a profile or a program has opened, or closed",
    "worker_started": "pool worker: a worker process is ready",
    "worker_lost": "pool worker why: a worker process ended, or was ended",
}
"""What happens, by name, with the names of its facts."""

Listener: TypeAlias = Callable[[str, Mapping[str, object]], None]
listeners: tuple[Listener, ...] = ()
"""Who hears it. While nobody does, what is to be said need not be put together."""
_hearing: dict[str, tuple[Listener, ...]] = {}  # by name


def subscribe(listener: Listener, names: Collection[str] = tuple(HAPPENINGS)) -> Callable[[], None]:
    """Let `listener(name, facts)` hear what happens in this process from now on; the returned function ends that.

    It is called where things happen, in the event loop, so it must not block. `names`: of what it hears. What "handled" tells
    is put together with every event, and costs nothing where nobody hears it.
    """
    global listeners
    listeners = (*listeners, listener)
    for name in names:
        _hearing[name] = (*_hearing.get(name, ()), listener)

    def unsubscribe() -> None:
        global listeners
        listeners = tuple(one for one in listeners if one is not listener)
        for name in names:
            _hearing[name] = tuple(one for one in _hearing[name] if one is not listener)

    return unsubscribe


def is_heard(name: str) -> bool:
    """Whether anybody hears what happens under that name."""
    return bool(_hearing.get(name))


def emit(name: str, /, **facts: object) -> None:
    """Say that something happened. `name` and the facts are those of HAPPENINGS. What is done again in silence was said."""
    heard = _hearing.get(name)
    for listener in () if not heard or is_silent() else heard:
        try:
            listener(name, facts)
        except Exception as e:  # noqa: BLE001  somebody else's code, which must not stop what it watches
            _log.warning("a listener failed", happening=name, why=repr(e))
