"""The line of a session: who waits in it is told when the call before it ends, whatever it is doing then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dspex.bus.memory.server import MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.port import Bus
from dspex.bus.serving.sessions.line import MOST_PAUSE, turn_of
from dspex.bus.serving.sessions.state import InLine, SessionState, left, used
from dspex.bus.serving.sessions.store import SessionStore

APP, ID = "lab", "anna"


LOOKS = 20  # from then on it looks as seldom as may be


class Overtaken(SessionStore):
    """A store in which something happens between a look and what is made of it."""

    looks = 0

    def __init__(self, bus: Bus, app: str, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(bus, app)
        self.meanwhile = meanwhile

    async def read(self, id: str) -> SessionState | None:
        found = await super().read(id)
        self.looks += 1
        if self.looks == LOOKS:
            await self.meanwhile()
        return found


def use(state: SessionState | None, now: float) -> SessionState:
    return used(ID, state, now, None)


def test_a_call_that_ends_while_the_next_one_looks_at_the_line_is_not_missed() -> None:
    async def go() -> float:
        bus, loop, ended = MemoryServer().connect(), asyncio.get_running_loop(), list[float]()
        first, second = [InLine(name, 0.0, "lightweight", "") for name in ("first", "second")]
        store = SessionStore(bus, APP)

        async def end() -> None:
            await store.change(ID, lambda state, now: left(use(state, now), first.call))
            store.pass_on(ID)
            ended.append(loop.time())

        await turn_of(store, ID, first, "queue", use, lambda place: None)
        state = await turn_of(Overtaken(bus, APP, end), ID, second, "queue", use, lambda place: None)
        assert state.line[0].call == second.call
        return loop.time() - ended[0]

    loop = VirtualLoop()
    waited = loop.run(go(), advance=True)
    loop.close()
    assert waited < MOST_PAUSE / 10
