"""The calls of other runs that a fork has asked something else: they are made, or it is said why they are not."""

from __future__ import annotations

from typing import Final

from dspex.bus import subjects
from dspex.bus.errors import CallError, Saturated
from dspex.bus.records import CallRecord, CallRequest, Usage
from dspex.engine.again.answering import Make, Mode

MOST_CALLS: Final = 100
"""That are made for other runs, since the number of these has no bound."""


class LaterCalls:
    """Makes calls of other runs. `make`: one of a pool.

    Attributes:
        called: how many were made. usage: of those. open: what was not made, and why.
    """

    def __init__(self, make: Make, mode: Mode) -> None:
        self._make, self._mode = make, mode
        self._full = dict[str, str]()  # pools that did not take a call: they are not asked again
        self.called, self.usage = 0, Usage()
        self.open = dict[str, None]()

    @property
    def tokens(self) -> int:
        """That were spent."""
        return self.usage.input_tokens + self.usage.output_tokens

    async def answer(self, request: CallRequest, *, new: bool = False) -> CallRecord | None:
        """The record of a call; None where it is not made. `new`: it was not asked then. Raises BusError."""
        pool = subjects.pool_of_record(request.record.subject) if request.record is not None else ""
        if why := self._refused(pool, request):
            what = "asked where it was not then" if new else "asked something else"
            follows = "what would follow is not known" if new else "what follows has the answers of then"
            self.open[f"{request.node} is {what}, and not called ({why}): {follows}"] = None
            return None
        try:
            made = await self._make(pool, request)
        except Saturated as error:
            self._full[pool] = error.message
            return await self.answer(request, new=new)
        except CallError as error:
            made = CallRecord(request.call, 0, 0, "", "", error=error.as_dict(), elapsed=request.timeout)
        self.called += 1
        self.usage += Usage.read(made.usage)
        return made

    def _refused(self, pool: str, request: CallRequest) -> str:
        """Why a call is not made; "" where it is."""
        if self._mode == "strict":
            return "no record answers it, and no call is made in mode strict"
        if request.spec.effect:
            return "it changes something elsewhere"
        if self.called >= MOST_CALLS:
            return f"{MOST_CALLS} calls of other runs were made"
        return self._full.get(pool, "")
