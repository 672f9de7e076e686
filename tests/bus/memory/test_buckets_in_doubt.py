"""Values of the in-memory bus of which nobody was told whether they were put."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from dspex.bus.errors import Unsettled
from dspex.bus.memory.server import Faults, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop


def test_a_value_of_a_bucket_may_be_put_though_nobody_was_told_and_a_late_one_replaces_no_newer_one(loop: VirtualLoop) -> None:
    fates: Counter[str] = Counter()

    async def main() -> None:
        server = MemoryServer()
        bucket = await server.connect().bucket("B")
        for n in range(60):
            server.luck.faults = Faults(unsettled=1.0)
            with pytest.raises(Unsettled):
                await bucket.put(f"k{n}", b"first", revision=0)
            server.luck.faults = Faults()
            before = await bucket.get(f"k{n}")
            if before is None and n % 2:
                await bucket.put(f"k{n}", b"second", revision=0)
            await asyncio.sleep(10)
            found = await bucket.get(f"k{n}")
            fates[f"{before[0] if before else None} then {found[0] if found else None}"] += 1

    loop.run(main(), advance=True)
    assert set(fates) == {"b'first' then b'first'", "None then b'first'", "None then b'second'", "None then None"}
