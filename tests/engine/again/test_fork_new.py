"""What a fork leads to that was not there then: timers, calls, events of other keys, and what other topologies read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from engine_lab import Lab

from dspex.bus.records import CallRecord, CallRequest
from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import Forked, forked
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
_START = 1_767_225_600


def counted(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return state + data["n"], [{"k": data["k"], "sum": state + data["n"]}]


def plus(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {"n": one["n"] + other["n"]}


def small() -> list[Topology]:
    """Of small numbers: sums, the last one for a while, windows, a call for every two; and a topology that reads the sums."""
    topology, reader = Topology("small"), Topology("reader")
    read = topology.source("in", time="at").filter("n < 50", name="only")
    by_k = read.key_by("k", name="by_k")
    by_k.stateful(counted, init=int, name="total").sink("sums")
    by_k.debounce("5s", name="quiet").sink("last")
    by_k.window("10s").reduce(plus, name="window").map(lambda w: {"k": w.key, "n": w.value["n"]}, name="shown").sink("windows")
    two = by_k.batch(2, within="50s", name="two").map(lambda of: {"n": sum(one["n"] for one in of)}, name="joined")
    two.predict("n -> grade", name="grade", pool="p").sink("grades")
    reader.source("sums").key_by("k", name="again").stateful(most, init=int, name="most").sink("highest")
    return [topology, reader]


def most(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return max(state, data["sum"]), [{"k": data["k"], "most": max(state, data["sum"])}]


@pytest.fixture
def done(lab: MakeLab) -> tuple[Lab, list[str]]:
    """Three events of the key a, one too large of b, one more of a, and none of c; 20 s apart."""
    one, runs = lab(*small()), list[str]()
    one.answers["grade"] = lambda inputs, request: {"grade": f"is {inputs['n']}"}
    one.start()
    one.work("p")
    for n, (k, number) in enumerate([("a", 1), ("a", 2), ("a", 4), ("b", 99), ("a", 8)]):
        runs.append(one.publish("in", {"k": k, "n": number, "at": _START + 20 * n}))
        one.advance(20)
    runs.append(one.publish("in", {"k": "d", "n": 0, "at": _START + 400}))
    one.advance(40)
    return one, runs


def fork(done: tuple[Lab, list[str]], number: int, at: str, how: Mapping[str, Any] | None = None, **change: Any) -> Forked:
    one, runs = done
    made: Forked = one.run(
        forked(one.client, runs[number], at, ForkChange(**change), [of.graph for of in small()], **(how or {}))
    )
    return made


def of(found: Forked, step: str) -> list[tuple[str | None, Any, Any]]:
    assert found.later is not None
    return [(one.field, one.a, one.b) for one in found.later.diffs if one.step == step]


def sent(found: Forked, subject: str) -> list[Any]:
    assert found.later is not None
    return [one.data for one in found.later.outputs if one.subject == subject]


def maker(calls: list[Any]) -> Any:
    """Makes calls, and notes them."""

    async def make(pool: str, request: CallRequest) -> CallRecord:
        calls.append(request.inputs["n"])
        return CallRecord(request.call, 1, 1, "", "", outputs={"grade": "new"}, elapsed=3.0, usage={"input_tokens": 7})

    return make


def test_a_window_that_the_change_alone_has_opened_closes_by_the_recorded_watermark(done: tuple[Lab, list[str]]) -> None:
    assert sent(fork(done, 3, "only", {"mode": "strict"}, inputs={"n": 16}), "windows") == [{"k": "b", "n": 16}]


def test_a_timer_that_the_change_alone_has_set_comes_due_by_the_recorded_time(done: tuple[Lab, list[str]]) -> None:
    made = fork(done, 3, "only", {"make": maker([])}, inputs={"n": 16})
    assert sent(made, "grades") == [{"n": 16, "grade": "new"}], "b has one event alone, for which 50 s are waited"
    assert made.later is not None
    assert made.later.open == ("at the end of the log total is not as it was", "at the end of the log most is not as it was")


def test_what_comes_to_another_key_is_followed_there_and_is_missed_where_it_came_then(done: tuple[Lab, list[str]]) -> None:
    made = fork(done, 0, "in", {"mode": "strict"}, inputs={"k": "d"})
    assert of(made, "sums") == [("sum", 3, 2), ("sum", 7, 6), ("sum", 15, 14), ("sum", 0, 1)]
    assert of(made, "windows") != []


def test_a_call_that_was_not_asked_then_is_made_counted_and_followed(done: tuple[Lab, list[str]]) -> None:
    calls = list[Any]()
    made = fork(done, 3, "only", {"make": maker(calls)}, inputs={"n": 16})
    assert (calls, made.called, made.tokens) == ([16], 1, 7)
    assert sent(made, "grades") == [{"n": 16, "grade": "new"}]
    strict = fork(done, 3, "only", {"make": maker(calls), "mode": "strict"}, inputs={"n": 16})
    assert (calls, sent(strict, "grades")) == ([16], [])
    assert strict.later is not None
    why = "grade is asked where it was not then, and not called (no record answers it, and no call is made in mode strict)"
    assert any(one.startswith(why) for one in strict.later.open)


def test_what_is_newly_sent_to_a_sink_is_followed_into_who_reads_it(done: tuple[Lab, list[str]]) -> None:
    made = fork(done, 3, "in", {"mode": "strict"}, inputs={"k": "a", "n": 16})
    assert of(made, "highest")[0] == ("most", 15, 31)
    assert ("highest#0", 23) in [(one.step, one.b["most"]) for one in made.diff.steps if one.step == "highest#0"]
