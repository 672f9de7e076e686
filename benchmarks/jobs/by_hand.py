"""The jobs `count` and `window` by hand for one process, with the same durability: each atomic batch holds the
results, the position and what changed of the state, under compare-and-set on the entry before (`loop` in peers.py).
"""

from __future__ import annotations

import time
from collections import Counter

import msgpack
import orjson

from jobs import peers

MINUTE = 60.0


async def run(url: str, stream: str, subject: str, count: int, job: str) -> tuple[float, float]:
    """Seconds that it takes for some events, and seconds of CPU."""
    work, used = {"count": Count, "window": Window}[job](), time.process_time()
    seconds = await peers.loop(url, count, stream, subject, work)
    return seconds, time.process_time() - used


class Count:
    """A number for each event: how many its key has had."""

    def __init__(self) -> None:
        self.state = Counter[str]()

    def __call__(self, events: list[bytes]) -> tuple[list[bytes], bytes]:
        results, changed = list[bytes](), dict[str, int]()
        for data in events:
            key = orjson.loads(data)["customer"]
            self.state[key] = changed[key] = self.state[key] + 1
            results.append(orjson.dumps({"key": key, "count": changed[key]}))
        return results, msgpack.packb(changed)


class Window:
    """How many events each key had in each minute, once its minute is over."""

    def __init__(self) -> None:
        self.state: dict[float, Counter[str]] = {}

    def __call__(self, events: list[bytes]) -> tuple[list[bytes], bytes]:
        changed, mark = dict[tuple[float, str], int](), 0.0
        for data in events:
            event = orjson.loads(data)
            at = event["id"] / 1000
            start, key = at // MINUTE * MINUTE, event["customer"]
            window = self.state.setdefault(start, Counter())
            window[key] = changed[start, key] = window[key] + 1
            mark = max(mark, at)
        ended = [start for start in sorted(self.state) if start + MINUTE <= mark]
        results = [
            orjson.dumps({"key": key, "start": start, "end": start + MINUTE, "value": value})
            for start in ended
            for key, value in sorted(self.state.pop(start).items())
        ]
        return results, msgpack.packb([ended, [[*of, value] for of, value in changed.items()]])
