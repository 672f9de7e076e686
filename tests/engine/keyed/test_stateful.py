"""stateful: a value for each key, that outlives engines, wakes itself, and is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from math import nan
from typing import Any

import pytest
from engine_lab import Lab
from pydantic import BaseModel, Field, PrivateAttr

from dspex.bus.errors import RetryLater, TopologyError
from dspex.engine.graph.context import StateContext
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.nodes import StateNode
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def counted(state: int, data: Any, ctx: StateContext) -> tuple[int | None, Iterable[Any]]:
    if data.get("forget"):
        return None, []
    if data.get("wake"):
        ctx.wake(data["wake"])
    return state + 1, [{"k": ctx.key, "n": state + 1}]


def woken(state: int, ctx: StateContext) -> tuple[int | None, Iterable[Any]]:
    return None, [{"k": ctx.key, "woken": state}]


def counting(**options: Any) -> Topology:
    topology = Topology("t")
    topology.source("in").key_by("k").stateful(counted, init=int, name="count", **options).sink("out")
    return topology


def test_state_outlives_the_engine_and_belongs_to_its_key() -> None:
    with Driver(counting()) as d:
        for n in range(6):
            d.publish("in", {"k": f"k{n % 2}"})
        d.crash()
        d.publish("in", {"k": "k0"})
        assert d.outputs("out")[-1] == {"k": "k0", "n": 4}


def test_none_forgets_the_key_with_its_timers() -> None:
    with Driver(counting(on_wake=woken)) as d:
        d.publish("in", {"k": "a", "wake": "10s"})
        d.publish("in", {"k": "a", "forget": True})
        d.advance("20s")
        d.publish("in", {"k": "a"})
        assert d.outputs("out") == [{"k": "a", "n": 1}, {"k": "a", "n": 1}]


def test_a_key_is_woken_once_when_it_asked_to_be_also_by_the_next_engine() -> None:
    with Driver(counting(on_wake=woken)) as d:
        d.publish("in", {"k": "a", "wake": "10s"})
        d.publish("in", {"k": "a", "wake": "20s"})
        d.advance("15s")
        assert [o for o in d.outputs("out") if "woken" in o] == []
        d.crash()
        d.advance("6s")
        d.advance("30s")
        assert [o for o in d.outputs("out") if "woken" in o] == [{"k": "a", "woken": 2}]


def test_a_function_that_fails_leaves_the_state_as_it_was() -> None:  # I6
    def fails(state: list[int], data: Any, ctx: StateContext) -> tuple[list[int], list[int]]:
        state.append(data["n"])
        if data["n"] == 2:
            raise ValueError("no")
        return state, [len(state)]

    topology = Topology("t")
    topology.source("in").key_by("k").stateful(fails, init=list, name="s").sink("out")
    with Driver(topology) as d:
        for n in (1, 2, 3):
            d.publish("in", {"k": "a", "n": n})
        assert d.outputs("out") == [1, 2]
        assert [letter.node for letter in d.dead_letters()] == ["s"]


def test_what_fails_behind_a_function_that_was_woken_is_a_letter_that_can_be_redriven() -> None:
    broken = [True]

    def behind(data: Any) -> Any:
        if "woken" in data and broken[0]:
            raise ValueError("no")
        return data

    topology = Topology("t")
    keyed = topology.source("in").key_by("k")
    keyed.stateful(counted, init=int, name="count", on_wake=woken).map(behind, name="behind").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a", "wake": "1s"})
        d.advance("2s")
        assert [letter.node for letter in d.dead_letters()] == ["behind"]
        broken[0] = False
        d.redrive()
        assert d.outputs("out")[-1] == {"k": "a", "woken": 1}
        d.publish("in", {"k": "a"})
        assert d.outputs("out")[-1] == {"k": "a", "n": 1}  # the state had gone with the first try


def test_a_function_that_fails_when_it_is_woken_keeps_its_state_and_is_woken_again_by_its_letter() -> None:
    broken = [True]

    def on_wake(state: int, ctx: StateContext) -> tuple[int | None, Iterable[Any]]:
        if broken[0]:
            raise ValueError("no")
        return woken(state, ctx)

    with Driver(counting(on_wake=on_wake)) as d:
        d.publish("in", {"k": "a", "wake": "1s"})
        d.advance("2s")
        assert [letter.node for letter in d.dead_letters()] == ["count"]
        broken[0] = False
        d.redrive()
        assert d.outputs("out")[-1] == {"k": "a", "woken": 1}


def test_being_woken_can_be_put_off() -> None:
    tries = []

    def on_wake(state: int, ctx: StateContext) -> tuple[int | None, Iterable[Any]]:
        tries.append(ctx.now)
        if len(tries) < 3:
            raise RetryLater(after=5)
        return woken(state, ctx)

    with Driver(counting(on_wake=on_wake)) as d:
        d.publish("in", {"k": "a", "wake": "1s"})
        d.advance("30s")
        assert [o for o in d.outputs("out") if "woken" in o] == [{"k": "a", "woken": 1}]


def test_ids_of_what_comes_out_at_each_waking_differ() -> None:
    def again(state: int, ctx: StateContext) -> tuple[int | None, Iterable[Any]]:
        if state < 4:
            ctx.wake("1s")
        return state + 1, [{"k": ctx.key, "n": state}, {"k": ctx.key, "n": state}]

    with Driver(counting(on_wake=again)) as d:
        d.publish("in", {"k": "a", "wake": "1s"})
        d.publish("in", {"k": "b", "wake": "1s"})
        d.advance("10s")
        events = d.events("out")
        assert len(events) == 2 + 2 * 2 * 4
        assert len({e.id for e in events}) == len(events)


@dataclass
class Seen:
    texts: set[str]
    last: tuple[int, str] | None = None


def test_state_comes_back_as_what_it_was() -> None:
    def collect(state: Seen, data: Any, ctx: StateContext) -> tuple[Seen, list[Any]]:
        state.texts.add(data["text"])
        state.last = (1 << 70, data["text"])
        return state, [{"many": len(state.texts), "last": str(state.last)}]

    topology = Topology("t")
    topology.source("in").key_by("k").stateful(collect, init=lambda: Seen(set()), name="s").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a", "text": "x"})
        d.crash()
        d.publish("in", {"k": "a", "text": "y"})
        assert d.outputs("out")[-1] == {"many": 2, "last": f"({1 << 70}, 'y')"}


@pytest.mark.parametrize("state", [object(), {"deep": [object()]}, type("Own", (dict,), {})()])
def test_state_that_cannot_be_kept_is_refused_by_name_and_loses_nothing(state: object) -> None:
    topology = Topology("t")
    topology.source("in").key_by("k").stateful(lambda s, d, ctx: (state, []), init=int, name="s").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"k": "a"})
        (letter,) = d.dead_letters()
        assert (letter.node, letter.code) == ("s", "DX502")


class Mood(Enum):
    FINE = "fine"
    BAD = "bad"


class Aliased(BaseModel):
    n: int = Field(0, alias="N")
    mood: Mood = Mood.FINE
    last: float = 0


class Excluded(BaseModel):
    n: int = Field(0, exclude=True)


class Private(BaseModel):
    _n: int = PrivateAttr(0)

    @property
    def n(self) -> int:
        return self._n

    @n.setter
    def n(self, value: int) -> None:
        self._n = value


class Base(BaseModel):
    n: int = 0
    inner: Base | None = None


class More(Base):
    more: int = 1


@dataclass
class Hidden:
    n: int = field(default=0, init=False)


@dataclass
class Outer:
    n: int = 0
    seen: Seen = field(default_factory=lambda: Seen(set()))


@pytest.mark.parametrize(
    ("init", "kept"),
    [
        (Aliased, True),
        (Outer, True),
        (Excluded, False),
        (Private, False),
        (Hidden, False),
        (lambda: Base(inner=Base()), True),
        (Base, False),
    ],
)
def test_state_of_a_type_is_kept_whole_or_refused(init: Callable[[], Any], kept: bool) -> None:
    def add(state: Any, data: Any, ctx: StateContext) -> tuple[Any, list[Any]]:
        state.n += 1
        if isinstance(state, Aliased):
            state.mood, state.last = Mood.BAD, nan
        if isinstance(state, Base) and state.inner is None:
            state.inner = More()
        return state, [state.n]

    topology = Topology("t")
    topology.source("in").key_by("k").stateful(add, init=init, name="s").sink("out")
    with Driver(topology) as d:
        for _ in range(3):
            d.publish("in", {"k": "a"})
        assert d.outputs("out") == ([1, 2, 3] if kept else [])
        assert {letter.message[:21] for letter in d.dead_letters()} == (set() if kept else {"state cannot be kept:"})


def test_who_asks_to_be_woken_and_has_nothing_for_it_is_told() -> None:
    with Driver(counting()) as d:
        d.publish("in", {"k": "a", "wake": "1s"})
        (letter,) = d.dead_letters()
        assert (letter.message, letter.event.data["k"]) == ("counted asked to be woken, and there is no on_wake", "a")
        assert d.state("count", "a") is None


def test_a_stream_without_a_key_has_no_state_and_the_fix_is_said() -> None:
    topology = Topology("t")
    topology.source("in").stateful(counted, init=int, name="count").sink("out")  # type: ignore[misc]
    (problem,) = [p for p in topology.check() if p.code == "DX203"]
    assert "in has no key" in problem.message
    assert ".key_by(" in problem.fix


def test_state_follows_a_new_name_and_is_not_given_up_unsaid(lab: MakeLab) -> None:
    def named(name: str, **options: Any) -> Topology:
        topology = Topology("t", **options)
        topology.source("in").key_by("k").stateful(counted, init=int, name=name).sink("out")
        return topology

    one = lab(named("count"))
    one.start()
    one.publish("in", {"k": "a"})
    one.advance(1)
    one.kill()
    with pytest.raises(TopologyError, match="'count' of the applied version is gone") as refused:
        one.start("b", named("counter"))
    assert refused.value.code == "DX232"
    one.start("c", named("counter", renamed_from={"counter": "count"}))
    one.publish("in", {"k": "a"})
    one.advance(10)
    assert one.outputs("out") == [{"k": "a", "n": 1}, {"k": "a", "n": 2}]


def test_state_of_another_form_is_refused_and_not_read(lab: MakeLab) -> None:
    def formed(form: str) -> Graph:
        topology = counting()
        nodes = dict(topology.graph.nodes)
        count = nodes["count"]
        assert isinstance(count, StateNode)
        nodes["count"] = replace(count, options={"form": form}, state=replace(count.state, form=form))
        return replace(topology.graph, nodes=nodes)

    one = lab(HasGraph(formed("window 60")))
    one.start()
    one.kill()
    with pytest.raises(TopologyError) as refused:
        one.start("b", HasGraph(formed("window 300")))
    assert refused.value.code == "DX231"


@dataclass
class HasGraph:
    graph: Graph


def test_more_state_than_a_partition_may_have_is_a_letter_and_what_was_kept_stays() -> None:
    def grow(state: bytes, data: Any, ctx: StateContext) -> tuple[bytes, list[int]]:
        return state + bytes(data["n"]), [len(state) + data["n"]]

    topology = Topology("t")
    topology.source("in").key_by("k").stateful(grow, init=bytes, name="s").sink("out")
    with Driver(topology) as d:
        for n in (5 << 20, 4 << 20, 1):
            d.publish("in", {"k": "a", "n": n})
        assert d.outputs("out") == [5 << 20, (5 << 20) + 1]
        (letter,) = d.dead_letters()
        assert (letter.node, letter.code) == ("s", "DX512")


def test_state_that_fits_its_type_no_more_is_a_letter_that_says_so(lab: MakeLab) -> None:
    @dataclass
    class Old:
        n: int = 0

    @dataclass
    class New:
        n: int
        more: str

    def of(kind: Any) -> Topology:
        topology = Topology("t")
        topology.source("in").key_by("k").stateful(lambda s, d, ctx: (s, [1]), init=kind, name="s").sink("out")
        return topology

    one = lab(of(Old))
    one.start()
    one.publish("in", {"k": "a"})
    one.advance(1)
    one.kill()
    one.start("b", of(lambda: New(1, "")))
    one.publish("in", {"k": "a"})
    one.advance(10)
    assert [letter.code for letter in one.letters()] == ["DX513"]


@pytest.mark.parametrize("value", [b"\xff", float("nan"), object()], ids=["bytes", "nan", "an object"])
def test_what_comes_out_later_may_be_what_json_cannot_write_and_stops_nobody_where_it_fails(value: Any) -> None:
    def check(data: Any) -> str:
        if fails:
            raise ValueError("no")
        return type(data).__name__

    fails: list[bool] = []
    topology = Topology("t")
    late = (
        topology.source("in")
        .key_by("k")
        .stateful(lambda s, d, ctx: (ctx.wake("1s"), (1, []))[1], init=int, name="s", on_wake=lambda s, ctx: (None, [value]))
    )
    late.map(check, name="check").sink("out")
    with Driver(topology) as d:
        for broken in (False, True):
            fails += [True] * broken
            d.publish("in", {"k": "a"})
            d.advance("2s")
        assert d.outputs("out") == [type(value).__name__]
        assert [letter.node for letter in d.dead_letters()] == ["check"]


def test_the_state_of_a_partition_has_the_limit_that_the_setting_says(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in").key_by("k").stateful(lambda s, d, ctx: (bytes(d["n"]), [d["n"]]), init=bytes, name="s").sink("out")
    one = lab(topology)
    one.start(state_limit=1000)
    for n in (400, 900, 1100, 500):
        one.publish("in", {"k": "a", "n": n})
    one.advance(1)
    assert one.outputs("out") == [400, 900, 500]  # less is taken at any time
    assert [letter.code for letter in one.letters()] == ["DX512"]
