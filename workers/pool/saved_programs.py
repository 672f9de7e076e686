"""Which saved state a call is answered with: the first step of a call, because what comes after it goes by that.

A call has one version, whatever an alias means by its next attempt: that which the record of an earlier attempt names, as the
engine says in the request. An attempt that left no record may have left a journal: with another version than its own the
call would ask for other things, and pay for all of them again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from dspex.bus import subjects
from dspex.bus.errors import (
    BusError,
    ConfigError,
    DataError,
    DecodeError,
    NotAllowed,
    NotStored,
    ProgramError,
    RunError,
    WorkerLost,
)
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving import payloads
from dspex.bus.serving.programs.names import StateName, is_version
from dspex.bus.serving.programs.states import SavedStates
from dspex.workers.answer import Answer
from dspex.workers.frames import StateTag
from dspex.workers.journal.entries import JournalPart
from dspex.workers.pool.children.child_process import GivenState

if TYPE_CHECKING:
    from dspex.workers.pool.execution import Execution

FRESH: Final = 2.0  # seconds for which it is believed what a name means that may come to mean something else
MOST_KEPT: Final = 64 << 20  # bytes of states that the parent keeps; a child has its own
MOST_NAMES: Final = 1000


class SavedPrograms:
    """The saved states that the calls of a pool name, each read once."""

    def __init__(self, bus: Bus, app: str, pool: str) -> None:
        self._bus, self._app, self._pool = bus, app, pool
        self._states = SavedStates(bus, app)
        self._known: dict[str, tuple[float, GivenState]] = {}  # name → until when it is believed
        self._turn = asyncio.Lock()

    def before(self, execution: Execution) -> Answer | Coroutine[Any, Any, Answer | None] | None:
        name, work = execution.work.spec.state, execution.work
        if name is None:
            return None
        name = work.state or name
        if execution.again and work.spec.journaled and not is_version(name):
            return self._go_on(execution, name)
        until, found = self._known.get(name, (0.0, None))
        if found is None or asyncio.get_running_loop().time() >= until:
            return self._ask(execution, name)
        execution.state, execution.version = found, found.tag.name
        return None

    def after(self, execution: Execution, record: CallRecord) -> None:
        """Nothing is held for a call."""

    def forget(self) -> None:
        """Ask again what names mean: an alias points elsewhere now, or there is a new version."""
        self._known = {name: (0.0 if until != math.inf else until, state) for name, (until, state) in self._known.items()}

    async def _go_on(self, execution: Execution, name: str) -> None:
        """Find the state that an earlier attempt at the call began with, else what its name means now. Raises as `_ask`."""
        try:
            name = await self._begun_with(execution.work) or name
        except NotStored:  # there is no journal
            pass
        except BusError as error:
            raise WorkerLost(f"the journal of the call cannot be read: {error.message}", node=execution.work.node) from error
        await self._ask(execution, name)

    async def _begun_with(self, work: CallRequest) -> str:
        """The version that the journal of a call names; "" for none. Raises BusError."""
        stream, subject = subjects.requests(self._app), subjects.request(self._app, self._pool, work.call)
        at, number = 1, work.record.number if work.record is not None else None
        while (found := await self._bus.next(stream, subject, at)) is not None:
            with suppress(DecodeError):
                whole = await payloads.checked_out(self._bus, self._app, found)
                if whole is not None and (part := JournalPart.unpack(whole.data)).number == number:
                    return part.state
            at = found.sequence + 1
        return ""

    async def _ask(self, execution: Execution, name: str) -> None:
        """Find the state that a name means now. Raises ProgramError; WorkerLost where it may be found later."""
        async with self._turn:  # who waits finds that it is known by then
            until, known = self._known.get(name, (0.0, None))
            if known is None or asyncio.get_running_loop().time() >= until:
                known = await self._find(name, known, execution.work.node)
        execution.state, execution.version = known, known.tag.name

    async def _find(self, text: str, before: GivenState | None, node: str) -> GivenState:
        try:
            name = StateName.read(text)
            version = await self._states.find(name)
            if before is not None and before.tag.name == version.name:
                found = before
            else:
                state = await self._states.load(version)
                found = GivenState(StateTag(version.name, version.digest, version.dspy_version), state.packed)
        except (ConfigError, RunError, DataError, NotAllowed) as error:
            self._known.pop(text, None)
            raise ProgramError(error.message, code=error.code, fix=error.fix, node=node) from error
        except BusError as error:
            if before is not None:  # as it was a moment ago: no call waits until the server's part has another leader
                self._known[text] = asyncio.get_running_loop().time() + FRESH, before
                return before
            raise WorkerLost(f"the saved state {text} cannot be read: {error.message}", node=node) from error
        self._known.pop(text, None)
        self._known[text] = math.inf if name.fixed else asyncio.get_running_loop().time() + FRESH, found
        self._make_room()
        return found

    def _make_room(self) -> None:
        sizes = {found.tag.digest: len(found.body) for _, found in self._known.values()}
        while len(self._known) > 1 and (sum(sizes.values()) > MOST_KEPT or len(self._known) > MOST_NAMES):
            self._known.pop(next(iter(self._known)))
            sizes = {found.tag.digest: len(found.body) for _, found in self._known.values()}
