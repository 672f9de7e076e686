"""Public copies of sinks: streams that the server itself fills from the application's stream (`sink(stream=…)`).

A commit is kept whole within one stream, so a sink is in the application's; but that one is dspex's own, and who may read it
reads all of it. A copy is a stream of the user's: it has the limits that they give it, and dspex never removes anything of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from dspex.bus import subjects
from dspex.bus.errors import TopologyError
from dspex.bus.port import Bus, StreamConfig
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import Sink


async def check(bus: Bus, app: str, graphs: Sequence[Graph]) -> None:
    """Refuse, before anything is made, a copy that would not be one. Raises TopologyError (DX241)."""
    own = subjects.stream(app)
    begun = await bus.stream(own) is not None
    for name, sinks in _wanted(graphs).items():
        info = await bus.stream(name)
        has = info.copies.get(own, ()) if info is not None else ()
        lacking = _lacking(sinks, has)
        for sink in lacking:
            if (other := next((p for p in has if subjects.overlap(p, sink.pattern)), None)) is not None:
                raise _twice(sink.pattern, other, name)
        for a, b in combinations(lacking, 2):
            if subjects.overlap(a.pattern, b.pattern):
                raise _twice(a.pattern, b.pattern, name)
        if info is None:
            continue
        if lacking and (not info.own or info.subjects):
            raise _refused(
                lacking[0].pattern,
                f"stream {name} is of others, or has subjects of its own, and it copies nothing of {own}",
                f'sink(…, stream="another"), or have it copied yourself: {own} as a source of {name}, filter '
                f"{lacking[0].pattern}",
            )
        if has and not begun and info.messages:
            raise _refused(
                sinks[0].pattern,
                f"stream {name} is a copy of an earlier {own}, and where that one ended it would go on in the new one",
                f'remove it: nats stream rm {name}; or keep it, and sink(…, stream="another")',
            )


async def make(bus: Bus, app: str, graphs: Sequence[Graph], replicas: int) -> None:
    """Make the copies, and add to them what they lack. One that is there keeps its limits."""
    own = subjects.stream(app)
    for name, sinks in _wanted(graphs).items():
        info = await bus.stream(name)
        lacking = _lacking(sinks, info.copies.get(own, ()) if info is not None else ())
        if lacking:
            copies = {own: [sink.pattern for sink in lacking]}
            limit = -1 if info is None else None  # none at first; afterwards it is the user's
            await bus.ensure_stream(StreamConfig(name, (), replicas, max_bytes=limit, copies=copies))


def _wanted(graphs: Sequence[Graph]) -> dict[str, list[Sink]]:
    """The sinks of each copy."""
    wanted: dict[str, list[Sink]] = {}
    for sink in [node.sink for graph in graphs for node in graph.sinks]:
        if sink.stream is not None:
            wanted.setdefault(sink.stream, []).append(sink)
    return wanted


def _lacking(sinks: Iterable[Sink], has: Sequence[str]) -> list[Sink]:
    return [sink for sink in sinks if not any(subjects.includes(pattern, sink.pattern) for pattern in has)]


def _twice(pattern: str, other: str, name: str) -> TopologyError:
    why = f"stream {name} copies {other!r} already, and would have what both subjects take twice"
    return _refused(pattern, why, 'sink(…, stream="another")')


def _refused(pattern: str, why: str, fix: str) -> TopologyError:
    return TopologyError(f"sink {pattern!r} is to be copied: {why}", code="DX241", node=pattern, fix=fix)
