"""The line of a session: who waits in it is told when the call before it ends, whatever it is doing then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dspex.bus.memory.server import MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.serving.sessions.line import MOST_PAUSE, turn_of
from dspex.bus.serving.sessions.state import InLine, SessionState, left, used
from dspex.bus.serving.sessions.store import SessionStore

APP, ID = "lab", "anna"


class Overtaken(SessionStore):
    """A store in which something happens between a look and what is made of it."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def read(self, id: str) -> SessionState | None:
        found = await super().read(id)
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            await meanwhile()
        return found


def use(state: SessionState | None, now: float) -> SessionState:
    return used(ID, state, now, None)


def test_a_call_that_ends_while_the_next_one_looks_at_the_line_is_not_missed() -> None:
    async def go() -> float:
        store, loop = Overtaken(MemoryServer().connect(), APP), asyncio.get_running_loop()
        first, second = InLine("first", 0.0, "lightweight", ""), InLine("second", 0.0, "lightweight", "")
        await turn_of(store, ID, first, "queue", use, lambda place: None)
        waits = asyncio.ensure_future(turn_of(store, ID, second, "queue", use, lambda place: None))
        await asyncio.sleep(3)  # from then on it looks as seldom as may be
        ended = loop.create_future()

        async def end() -> None:
            await store.change(ID, lambda state, now: left(use(state, now), first.call))
            store.pass_on(ID)
            ended.set_result(loop.time())

        store.meanwhile = end
        state = await waits
        assert state.line[0].call == second.call
        return loop.time() - await ended

    loop = VirtualLoop()
    waited = loop.run(go(), advance=True)
    loop.close()
    assert waited < MOST_PAUSE / 10
