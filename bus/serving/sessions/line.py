"""The line of a session as who wants a turn stands in it: a client for a call that it makes, a worker for a submitted one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from dspex.bus.errors import SessionEnded
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.sessions.state import (
    BEAT,
    HISTORY,
    SILENT,
    InLine,
    Policy,
    SessionState,
    StoredTurn,
    joined,
    renewed,
)
from dspex.bus.serving.sessions.store import SessionChange, SessionStore

PAUSE: Final = 0.02  # seconds between two looks at the line, where nobody over this connection passes it on
MOST_PAUSE: Final = 0.25
_HISTORY: Final = re.compile(rf"(^|,)\s*{HISTORY}\s*(:|,|$)")


async def turn_of(
    store: SessionStore, id: str, place: InLine, policy: Policy, use: SessionChange, out: Callable[[InLine], None]
) -> SessionState:
    """Wait until a call stands first in the line of a session, or there is a turn of its name. The session as it is then.

    `use`: makes of what is stored the session that may be used. `out`: is told of the call that ran, where this one has taken
    its place. Raises SessionBusy, SessionEnded and Cancelled as `joined` and `renewed` do, and BusError.
    """
    ended: list[InLine] = []  # the call that runs, where this one takes its place

    def join(found: SessionState | None, now: float) -> SessionState:
        state = use(found, now)
        if place.turn and state.turn(place.turn) is not None:
            return state
        after = joined(id, state, now, place._replace(until=now + SILENT), policy)
        if after is not state:  # else it was written, and the call before it is known
            ended[:] = [first for first in state.standing(now)[:1] if first not in after.line]
        return after

    state, pause = await store.change(id, join), PAUSE
    for first in ended:
        out(first)
    with store.waiting(id) as passed_on:
        while not (state.line and state.line[0].call == place.call) and not (place.turn and state.turn(place.turn)):
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await passed_on.wait()
            passed_on.clear()  # before it looks: a call that ends meanwhile is not missed
            pause = min(pause * 1.5, MOST_PAUSE)
            state = await _looked(store, id, place, use)
    return state


async def _looked(store: SessionStore, id: str, place: InLine, use: SessionChange) -> SessionState:
    """The session as it is now, with the place renewed where it is time for that."""
    state, now = await store.read(id), await store.now()
    if state is None or state.ended:
        raise SessionEnded(f"session {id} was ended")
    mine = next((p for p in state.line if p.call == place.call), None)
    if mine is not None and mine.until > now + SILENT - BEAT and state.line[0].until >= now:
        return state
    return await store.change(id, lambda found, now: renewed(use(found, now), now, place.call))


def with_history(spec: CallSpec, data: Any, turns: Sequence[StoredTurn]) -> Any:
    """The data with the turns as its input `history`, where the signature has one and nothing is given for it."""
    if not _HISTORY.search((spec.signature or spec.target).partition("->")[0]) or not isinstance(data, Mapping):
        return data
    given = cast("Mapping[str, Any]", data)
    return given if HISTORY in given else {**given, HISTORY: {"messages": [{**t.inputs, **t.outputs} for t in turns]}}


def without_history(spec: CallSpec, data: Any, inputs: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
    """The inputs that `inputs` makes of the data of a call whose history is filled when its turn comes."""
    given = with_history(spec, data, ())
    made = dict(inputs(given))
    if given is not data and made.get(HISTORY) == given[HISTORY]:
        del made[HISTORY]
    return made
