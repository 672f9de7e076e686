"""Topologies with a part that is built from history, and the events for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from engine_lab import APP, Lab

from dspex.bus.codecs import encode
from dspex.bus.port import NewMessage
from dspex.engine.client.status.status import stage_rows
from dspex.engine.graph.lanes import Backfill
from dspex.engine.graph.manifest import Manifest, of_application
from dspex.engine.hosting.apply import Applied, apply
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
Build = Callable[[Any], object]
MONTH = Backfill(30 * 86400.0)


def sums(state: int, data: Any, ctx: Any) -> tuple[int, list[Any]]:
    return state + data["n"], [{"k": data["k"], "n": data["n"], "sum": state + data["n"]}]


def topology(*built: Build, **options: Any) -> Topology:
    """What was there before, and what is built beside it."""
    made = Topology("t", **options)
    keyed = made.source("in").key_by("k", name="by")
    keyed.map(lambda d: d, name="seen").sink("out")
    for one in built:
        one(keyed)
    return made


def summed(keyed: Any) -> None:
    keyed.stateful(sums, init=int, name="sums").sink("sums.out")


def windows(keyed: Any) -> None:
    keyed.window("10s").count(name="windows").sink("counts")


def both(keyed: Any) -> None:
    """A window behind another operator that is built, and another hop."""
    again = keyed.stateful(sums, init=int, name="sums").key_by(lambda d: f"x{d['n'] % 2}", name="again")
    again.window("10s").count(name="windows").sink("counts")


def message(n: int, subject: str = "in") -> NewMessage:
    return NewMessage(subject, encode({"k": f"k{n % 7}", "n": n}, "json")[0])


def send(one: Lab, numbers: Sequence[int], subject: str = "in") -> None:
    """Events, stored by another client."""

    async def go() -> None:
        for n in numbers:
            await one.client.bus.publish(message(n, subject))

    one.run(go())
    one.loop.settle()


def backfilled(one: Lab, made: Topology, **options: Any) -> Applied:
    applied: Applied = one.run(apply(one.client.bus, APP, [made.graph], backfill=MONTH, **options))
    return applied


def manifest(one: Lab) -> Manifest:
    found: dict[str, Manifest] = one.run(of_application(one.client.bus, APP))
    return found["t"]


def by_key(rows: Sequence[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.get("k", row.get("key")), []).append(row)
    return found


def history(one: Lab, *, first: int = 0, count: int = 60) -> None:
    """Events over half a minute."""
    for at in range(first, first + count, count // 3):
        send(one, range(at, at + count // 3))
        one.advance(10.3)


def begun(lab: MakeLab, made: Topology, *, events: int = 60) -> Lab:
    """History of what was there, and then a version with more, built from it, which is run."""
    one = lab(topology())
    one.start()
    history(one, count=events)
    one.drain()
    backfilled(one, made)
    one.start("b", made)
    return one


def sums_of(numbers: Sequence[int], behind: int) -> dict[str, list[Any]]:
    """What `summed` gives of these events, of those from the `behind`th on."""
    totals: dict[str, int] = {}
    rows: list[Any] = []
    for i, n in enumerate(numbers):
        key = f"k{n % 7}"
        totals[key] = totals.get(key, 0) + n
        if i >= behind:
            rows.append({"k": key, "n": n, "sum": totals[key]})
    return by_key(rows)


def lag(one: Lab, source: str) -> int:
    """Events that a source has not read, as `status` tells."""
    rows = one.run(stage_rows(one.client.bus, APP, one.run(of_application(one.client.bus, APP))))
    return next(int(row["lag"]) for row in rows if row["source"] == source)


async def rebuilt(one: Lab, made: Topology, *meanwhile: Awaitable[Any], reset: Sequence[str] = ()) -> None:
    """Apply a version with operators that are built anew, while something else goes on."""
    await asyncio.gather(apply(one.client.bus, APP, [made.graph], reset=reset, backfill=MONTH, again=True), *meanwhile)


def joined(within: str, **options: Any) -> Topology:
    """Pairs of two sources."""
    made = Topology("t")
    left, right = (made.source(name).key_by("k", name=f"by_{name}") for name in ("in", "other"))
    left.join(right, within=within, name="pairs", **options).map(lambda p: {"pair": p}, name="named").sink("pairs.out")
    return made


def through_both() -> Topology:
    """The same sources, before anything was built of them."""
    made = Topology("t")
    made.source("in").merge(made.source("other")).sink("out")
    return made
