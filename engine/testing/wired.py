"""Where a testing driver runs on a real nats-server, which it starts for itself, and still on a clock that stands still.

The clock is that of the loop, as in memory: no timer of the engine, of the workers or of the client runs by the machine's time.
So time never passes while something is on its way. It is known what is: a request that has no answer, and what the server has
stored and not yet delivered to a reader that waits for it. Nobody tells of the latter; who wants to know asks the server for
what lies behind the last message that the reader got.

The time that the server stores with a message is read as the one that the driver's clock showed then. What the server measures
by itself goes by its own clock: the window in which it takes no id twice. Work whose process died comes again when `ack_wait`
has passed on the clock of the driver, which hands it back then.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from dspex.bus.errors import Unreachable
from dspex.bus.local.server import LocalServer
from dspex.bus.memory.faults import Faults, Luck
from dspex.bus.memory.virtual import ReadyKey, Stall, VirtualLoop
from dspex.bus.port import Bus, Delivery
from dspex.bus.serving.work_consumers import ACK_WAIT
from dspex.engine.testing.wire import PATIENCE, ServerWire


class _WiredStall(Stall):
    """Waits for the wire where something is on its way; comes to rest, without waiting, where nothing is."""

    on_its_way: Callable[[], float]

    def select(self, timeout: float | None = None) -> list[ReadyKey]:
        ready = super(Stall, self).select(0)
        if not ready and timeout != 0 and (patience := self.on_its_way()):
            ready = super(Stall, self).select(patience)
            if not ready and patience == PATIENCE:
                raise Unreachable(f"the server of the test did not answer for {PATIENCE:g} s")
        return ready or super().select(timeout)


class _WiredLoop(VirtualLoop):
    """A loop whose clock stands still while anything is on its way."""

    def __init__(self, wire: ServerWire) -> None:
        self._wire = wire
        super().__init__(_WiredStall)
        cast("_WiredStall", self._stall).on_its_way = wire.on_its_way

    def settle(self) -> None:
        self._wire.clock.tick(self.time())  # it may have been moved since
        super().settle()
        while self._wire.stirred and not self.is_closed():
            self._wire.stirred = False
            look = self.create_task(self._wire.arrives())
            super().settle()
            if not look.done():  # what is there will be asked for at a time to come
                look.cancel()
                super().settle()
                return
            self._wire.stirred |= look.result()

    def _pass(self, end: float, task: asyncio.Task[Any] | None = None) -> None:
        self.settle()  # at each timer, for the wire's sake
        while not (task is not None and task.done()) and self._jump(end):
            self.settle()


class OnServer:
    """A nats-server of a driver's own, in a folder of its own. See `Ground`."""

    def __init__(self, seed: int, faults: Faults | None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="dspex-test-"))
        self._server = LocalServer(self._folder / "js", port=-1)
        try:
            asyncio.run(self._server.start())
        except BaseException:
            self._remove()
            raise
        self.luck = Luck(seed, faults or Faults())
        self._wire = ServerWire(self._server.url, self.luck)
        self.loop = _WiredLoop(self._wire)

    @property
    def now(self) -> float:
        return self._wire.clock.now

    async def connect(self) -> Bus:
        return await self._wire.connect()

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        async def again() -> None:
            for delivery in deliveries:
                self._wire.deliver_again(delivery)

        self._wire.later(ACK_WAIT, again)

    def close(self) -> None:
        try:
            self.loop.run(self._wire.close(), advance=True)
        finally:
            self.loop.close()
            asyncio.run(self._server.stop())
            self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
