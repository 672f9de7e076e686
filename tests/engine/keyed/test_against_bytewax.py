"""Keyed, windowed and joined events give what they give in another engine, late events aside. benchmarks/README.md has where
the two differ by intention.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex.operators.topology import Topology
from dspex.testing import Driver

op = pytest.importorskip("bytewax.operators", reason="Bytewax has no wheel for this Python or this machine")
win = pytest.importorskip("bytewax.operators.windowing")
bytewax_testing = pytest.importorskip("bytewax.testing")

START = datetime(2025, 1, 1, tzinfo=UTC)
SIZE, EVERY, GAP = (timedelta(seconds=s) for s in (10, 5, 4))
Outputs = dict[str, list[Any]]
Given = dict[str, Any]

# Whole seconds, so that times lie on the edges of windows, too; up to three late.
STEPS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from((0, 0, 1, 2, 4, 5, 13)), st.integers(0, 3)), max_size=25)


def events(steps: Sequence[tuple[str, int, int]]) -> list[Given]:
    found, now = list[Given](), 0
    for n, (key, step, late) in enumerate(steps):
        now += step
        found.append({"n": n, "k": key, "at": (START + timedelta(seconds=max(0, now - late))).isoformat()})
    return found


def at(event: Given) -> datetime:
    return datetime.fromisoformat(event["at"])


# -- dspex -----------------------------------------------------------------------------------------------------------------
def ours() -> Topology:
    made = Topology("jobs")
    source = made.source("in", time="at").filter("n >= 0", name="real")
    keyed = source.key_by("k", name="by_k")
    keyed.stateful(lambda state, data, ctx: (state + data["n"], [[data["k"], state + data["n"]]]), init=int, name="sum").sink(
        "out.sum"
    )
    keyed.window("10s", lateness="5s").collect(name="tumbling").sink("out.tumbling")
    keyed.window("10s", every="5s", lateness="5s").collect(name="sliding").sink("out.sliding")
    keyed.session_window("4s", lateness="5s").collect(name="session").sink("out.session")
    left, right = (
        source.filter(f"n % 2 == {side}", name=name).key_by("k", name=f"{name}_by_k") for side, name in enumerate(("l", "r"))
    )
    left.join(right, within="10s", name="join").sink("out.join")
    return made


def of_dspex(given: Sequence[Given]) -> Outputs:
    found: Outputs = {}
    with Driver(ours()) as d:
        for event in given:
            d.publish("in", event)
        d.publish("in", {"n": -1, "k": "a", "at": (START + timedelta(days=1)).isoformat()})  # all windows end
        d.advance("2s")
        found["sum"] = d.outputs("out.sum")
        for name in ("tumbling", "sliding", "session"):
            for one in d.outputs(f"out.{name}"):
                found.setdefault(name, []).append([one["key"], one["start"], [e["n"] for e in one["value"]]])
        for left, right in d.outputs("out.join"):  # Bytewax joins within a window: of our pairs those that share one
            if (at(left) - START) // SIZE == (at(right) - START) // SIZE:
                found.setdefault("join", []).append([left["n"], right["n"]])
    return {name: sorted(rows) for name, rows in found.items() if rows}


# -- Bytewax -----------------------------------------------------------------------------------------------------------------
def of_bytewax(given: Sequence[Given]) -> Outputs:
    from bytewax.dataflow import Dataflow

    found: dict[str, list[Any]] = defaultdict(list)
    clock = win.EventClock(at, timedelta(days=2), now_getter=lambda: START, to_system_utc=lambda _: None)
    flow = Dataflow("jobs")
    keyed = op.key_on("by_k", op.input("in", flow, bytewax_testing.TestingSource(list(given))), lambda e: e["k"])
    sums = op.stateful_map("sum", keyed, lambda state, e: ((state or 0) + e["n"],) * 2)
    op.output("sums", op.map("as_list", sums, list), bytewax_testing.TestingSink(found["sum"]))
    for name, windower in {
        "tumbling": win.TumblingWindower(SIZE, START),
        "sliding": win.SlidingWindower(SIZE, EVERY, START),
        "session": win.SessionWindower(GAP),
    }.items():
        windows = win.collect_window(name, keyed, clock, windower)
        both = op.join(
            f"{name}_with_times", *(op.map(f"{name}_{n}", s, by_window) for n, s in enumerate((windows.down, windows.meta)))
        )
        op.output(f"{name}_out", both, bytewax_testing.TestingSink(found[name]))
    sides = [op.filter(f"side_{side}", keyed, lambda ke, side=side: ke[1]["n"] % 2 == side) for side in (0, 1)]
    pairs = win.join_window("pairs", clock, win.TumblingWindower(SIZE, START), *sides, insert_mode="product")
    op.output("join", pairs.down, bytewax_testing.TestingSink(found["join"]))
    bytewax_testing.run_main(flow)
    rows: Outputs = {"sum": found["sum"]}
    rows["join"] = [[a["n"], b["n"]] for _, (_, (a, b)) in found["join"] if a is not None and b is not None]
    for name in ("tumbling", "sliding", "session"):
        rows[name] = [
            [key.split("/")[0], meta.open_time.isoformat(), [e["n"] for e in mine]] for key, (mine, meta) in found[name]
        ]
    return {name: sorted(of) for name, of in rows.items() if of}


def by_window(item: tuple[str, tuple[int, Any]]) -> tuple[str, Any]:
    """A window's result, and when it was, by its own name."""
    key, (window, value) = item
    return f"{key}/{window}", value


@settings(max_examples=settings().max_examples // 12)
@given(STEPS)
def test_sums_windows_sessions_and_joins_are_those_of_bytewax(steps: list[tuple[str, int, int]]) -> None:
    given = events(steps)
    assert of_dspex(given) == of_bytewax(given)
