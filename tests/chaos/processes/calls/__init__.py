"""Calls whose workers, engines and servers die: each ends once, and nothing is paid for twice that was not open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from oracle.ledger import Violation

from dspex.bus import subjects
from processes.world import APP, World, insist


async def ended(
    world: World, calls: int, done: str, patience: float, looks: Callable[[], None] = lambda: None
) -> list[Violation]:
    """Wait until so many calls have their output on `done` or their dead letter, and say where that takes too long.

    `looks`: called each time that is looked for.
    """
    stream = subjects.stream(APP)
    try:
        async with asyncio.timeout(patience):
            while await insist(lambda: world.bus.count(stream, [done, subjects.dead_pattern(APP)])) < calls:
                looks()
                await asyncio.sleep(0.5)
    except TimeoutError:
        return [Violation("a run comes to its end", f"not within {patience:.0f} s")]
    return []
