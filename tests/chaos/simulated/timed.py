"""The topology of the simulation of time, and its events."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from workload import POOL

from dspex.bus.records import Order
from dspex.engine.graph.context import StateContext
from dspex.engine.graph.nodes import Retry
from dspex.operators.stream import gather
from dspex.operators.topology import Topology

SOURCE, OTHER = "timed.events", "timed.others"
HOPS = ("by_k", "by_other")  # behind each of them
COUNTS, WOKEN, WINDOWS = "timed.counts", "timed.woken", "timed.windows"
SESSIONS, BATCHES, ONCE, MET, PAIRS = "timed.sessions", "timed.batches", "timed.once", "timed.met", "timed.pairs"
DECIDED, FOUND, TWO = "timed.decided", "timed.found", "timed.two"
SINKS = (COUNTS, WOKEN, WINDOWS, SESSIONS, BATCHES, ONCE, MET, PAIRS, DECIDED, FOUND, TWO)
EDITED = "edited"  # by people
SIZE, LATENESS, GAP, NEAR = 10.0, 6.0, 4.0, 8.0  # seconds
WAKE, YEAR = 20.0, 365 * 86400.0


class Timed(NamedTuple):
    """One event: its key, its number within the key, its event time, and the subject of its source."""

    id: str
    key: str
    n: int
    time: float
    source: str = SOURCE

    @property
    def place(self) -> tuple[str, int]:
        return self.key, self.n


def breaks(n: int) -> bool:
    """Whether the model fails at an event."""
    return n % 8 == 2


def rejects(n: int) -> bool:
    """Whether people reject an event."""
    return n % 4 == 3


def edits(n: int) -> bool:
    """Whether people edit it."""
    return n % 4 == 1


def tally(state: int, data: dict[str, Any], ctx: StateContext) -> tuple[int, list[dict[str, Any]]]:
    ctx.wake(WAKE)
    return state + 1, [{**data, "count": state + 1}]


def woken(state: int, ctx: StateContext) -> tuple[int, list[dict[str, Any]]]:
    return state, [{"k": ctx.key, "woken": state}]


def last(state: float, data: dict[str, Any], ctx: StateContext) -> tuple[float, list[float]]:
    return max(state, data["n"]), []


def start(window: dict[str, Any]) -> float:
    return datetime.fromisoformat(window["start"]).timestamp()


def build(
    partitions: int, *, people: bool = False, enriched: bool = False, serial: bool = False, two: bool = False
) -> Topology:
    """`people`: events wait for their decision. `enriched`: a function is asked for each, in the order of their keys;
    `serial`: for one of a key after the other.
    `two`: a second source is merged with the first one behind hops of their own, and joined with it.
    """
    t = Topology("timed")
    keyed = t.source(SOURCE, partitions=partitions).key_by("k", name=HOPS[0])
    if two:
        other = t.source(OTHER, partitions=partitions).key_by("k", name=HOPS[1])
        both = keyed.join(other, within=NEAR, name="two")
        both.map(lambda pair: {"k": pair[0]["k"], "n": [d["n"] for d in pair]}).sink(TWO)
        keyed = keyed.merge(other)
    counted = keyed.stateful(tally, init=int, on_wake=woken, name="tally")
    one, other = counted.branch("has(n)")
    other.sink(WOKEN)
    one.sink(COUNTS)
    retry = Retry(attempts=12, backoff="200ms", factor=1.5, cap="2s")
    asked = keyed.predict("text -> label: str", name="ask", retry=retry, deadline="30m")
    asked.window(SIZE, lateness=LATENESS).count(name="windows").sink(WINDOWS)
    keyed.session_window(GAP, lateness=LATENESS).count(name="sessions").sink(SESSIONS)
    keyed.batch(3, within="5s", name="batched").map(lambda many: {"k": many[0]["k"], "n": [d["n"] for d in many]}).sink(BATCHES)
    keyed.dedupe("str(n // 3)", within="1h", name="once").sink(ONCE)
    shouted = keyed.map(lambda d: {"shouted": d["text"].upper()}, name="shout")
    gather(keyed, shouted, asked, name="met", within="5m").sink(MET)
    keyed.join(asked, within=NEAR, name="pairs").map(lambda pair: {"k": pair[0]["k"], "n": [d["n"] for d in pair]}).sink(PAIRS)
    again = keyed.key_by("str(n % 3)", name="again")
    again.stateful(last, init=float, ttl="30s", name="last").sink("timed.last")
    if people:
        keyed.approve(show=["n"], name="people").sink(DECIDED)
    if enriched:
        order: Order = "serial" if serial else "key"
        keyed.enrich("somebody:finds", name="find", pool=POOL, order=order, retry=retry, deadline="30m").sink(FOUND)
    return t
