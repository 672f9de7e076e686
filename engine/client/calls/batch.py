"""Many calls at a time, a few of them open: `client.batch(…)`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final, TypeVar

from dspex.bus.errors import ConfigError, DspexError
from dspex.bus.tasks import Tasks

In = TypeVar("In")
Out = TypeVar("Out")
_AHEAD: Final = 4  # times as many calls as may be open are begun before the first of them is given


async def in_order(
    call: Callable[[In], Awaitable[Out]], items: Iterable[In], concurrency: int
) -> AsyncIterator[Out | DspexError]:
    """What `call` gives for each item, in their order, or the error that it raised; at most `concurrency` run at a time.

    Items are taken as calls begin, never all at once. One that is slow holds back what is given, and no call behind it until
    four times as many are begun. Raises ConfigError for a `concurrency` under 1; what `items` raises, behind what was begun
    before. Closing the iterator ends the calls that run.
    """
    if concurrency < 1:
        raise ConfigError(f"{concurrency} calls at a time are none", code="DX105", fix="concurrency=16", node="concurrency")
    left, begun, running = iter(items), deque[asyncio.Task[Out | DspexError]](), 0
    tasks, changed = Tasks("batch", lambda name, error: None), asyncio.Event()

    async def one(item: In) -> Out | DspexError:
        nonlocal running
        try:
            return await call(item)
        except DspexError as error:
            return error
        finally:
            running -= 1
            changed.set()

    more = True
    try:
        while True:
            while more and running < concurrency and len(begun) < _AHEAD * concurrency:
                try:
                    item = next(left)
                except StopIteration:
                    more = False
                except Exception:
                    for task in begun:  # they were asked for, and paid
                        yield await task
                    raise
                else:
                    running += 1
                    begun.append(tasks.start(one(item), "call"))
            if not begun:
                return
            if begun[0].done():
                yield begun.popleft().result()
            else:
                changed.clear()
                await changed.wait()
    finally:
        await tasks.stop()
