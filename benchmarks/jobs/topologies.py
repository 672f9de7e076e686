"""The jobs as topologies: each makes, of the stream of a source, the stream whose data are stored. `number`: how many of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dspex.operators.stream import AnyStream
from dspex.operators.topology import Topology
from jobs.nexmark import QUERIES
from jobs.peers import change

TIME = "id / 1000"  # the event time of the benchmarks' events: 1,000 events a second, so 60 of each key in a minute
MINUTE = 60_000  # events of a minute, so


def counted(state: int, data: object, ctx: object) -> tuple[int, list[Any]]:
    """Count the events of a key, and let out each number."""
    return state + 1, [{"key": getattr(ctx, "key", None), "count": state + 1}]


def hops(stream: Any, number: int) -> AnyStream:
    """So many hops, one behind the other, and a map."""
    for at in range(number):
        stream = stream.key_by("customer", name=f"by_{at}")
    return stream.map(change)


def maps(stream: Any, number: int) -> AnyStream:
    """So many maps, which the engine links to one function."""
    for at in range(number):
        stream = stream.map(same, name=f"map_{at}")
    return stream


def same(data: object) -> object:
    """What a map costs by itself."""
    return data


def count(stream: Any, number: int) -> AnyStream:
    """A number for each event: how many its key has had."""
    return stream.key_by("customer", name="by_customer").stateful(counted, init=int, name="count")


def window(stream: Any, number: int) -> AnyStream:
    """How many events each key had in each minute."""
    return stream.key_by("customer", name="by_customer").window("1m").count(name="count")


def stages(stream: Any, number: int) -> AnyStream:
    """So many stages one behind the other, each with a state of its keys that ends after an hour."""
    for at in range(number):
        stream = stream.key_by("customer", name=f"by_{at}").stateful(passed, init=int, name=f"count_{at}", ttl="1h")
    return stream


def passed(state: int, data: object, ctx: object) -> tuple[int, list[object]]:
    """Count, and let the event go on."""
    return state + 1, [data]


class Job(NamedTuple):
    """`stages`: how many lie behind hops, where `number` does not say so. `idle`: of a source that reads the time of events."""

    make: Callable[[Any, int], AnyStream]
    stages: int | None = None
    idle: str | None = None

    def behind(self, number: int) -> int:
        """How many stages lie behind hops."""
        return number if self.stages is None else self.stages


JOBS = {
    "hops": Job(hops),
    "maps": Job(maps, 0),
    "count": Job(count, 1),
    "window": Job(window, 1, "30s"),
    "stages": Job(stages, idle="1s"),
    **{name: Job(query.make, query.stages, "30s" if query.stages else None) for name, query in QUERIES.items()},
}


def topology(name: str, job: str, number: int, subject: str, stream: str, sink: str, partitions: int) -> Topology:
    """A job between a source and a sink. `stream`: of the source; "" for one of the application."""
    made, of, idle = Topology(name), {"stream": stream} if stream else {}, JOBS[job].idle
    timed = {"time": TIME, "idle": idle} if idle is not None else {}
    source = made.source(subject, partitions=partitions, **timed, **of)
    JOBS[job].make(source, number).sink(sink)
    return made
