"""Native operators in the engine: one walk, all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import Lab
from pydantic import BaseModel, Field

from dspex.bus.errors import DataError, RetryLater
from dspex.bus.port import StreamConfig
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


class Message(BaseModel):
    text: str = Field(min_length=1)
    urgency: int = 0


def test_a_chain_of_all_native_operators_gives_each_event_its_outputs_in_order() -> None:
    topology = Topology("chain")
    words = (
        topology.source("in")
        .set({"text": "strip(text)"})
        .filter("len(text) > 0")
        .validate(Message)
        .flat_map(lambda m: [{"word": w, "urgency": m.urgency} for w in m.text.split()], name="words")
    )
    urgent, rest = words.branch("urgency >= 4")
    urgent.map(lambda d: {**d, "loud": d["word"].upper()}, name="shout").merge(rest).sink("out")
    urgent.sink("alarm")
    with Driver(topology) as d:
        d.publish("in", {"text": " a b ", "urgency": 5})
        d.publish("in", {"text": "   "})
        d.publish("in", {"text": "c", "urgency": 1})
        assert [o.get("loud", o["word"]) for o in d.outputs("out")] == ["A", "B", "c"]
        assert [o["word"] for o in d.outputs("alarm")] == ["a", "b"]


@pytest.mark.parametrize("data", [None, [1], 3, "text"])
def test_data_without_fields_becomes_a_letter_that_says_so_wherever_an_expression_reads_one(data: object) -> None:
    topology = Topology("fields")
    topology.source("a").key_by("k").sink("keyed")
    topology.source("b").filter("k").sink("filtered")
    topology.source("c").branch("k")[0].sink("branched")
    topology.source("d").sink("named.{k}")
    topology.source("e", time="k").sink("timed")
    with Driver(topology) as d:
        for subject in "abcde":
            d.publish(subject, data)
        kind = "null" if data is None else type(data).__name__
        said = f'"k": it reads fields by name, and the data is {kind}, which has none'
        assert [(one.reason, one.message) for one in d.dead_letters()] == [("ExpressionError", said)] * 5


def test_a_branch_sends_each_event_to_the_first_that_matches() -> None:
    topology = Topology("branches")
    a, b, rest = topology.source("in").branch("n > 10", "n > 5")
    a.sink("many")
    b.sink("some")
    rest.sink("few")
    with Driver(topology) as d:
        for n in (1, 7, 20):
            d.publish("in", {"n": n})
        assert [[o["n"] for o in d.outputs(s)] for s in ("many", "some", "few")] == [[20], [7], [1]]


def test_an_event_that_fails_half_way_emits_nothing_and_is_in_the_dead_letters() -> None:
    topology = Topology("half")
    source = topology.source("in")
    source.sink("first")
    source.map(lambda d: {"x": 1 / d["n"]}, name="divide").sink("second")
    with Driver(topology) as d:
        d.publish("in", {"n": 0})
        d.publish("in", {"n": 2})
        assert d.outputs("first") == [{"n": 2}]
        assert [letter.node for letter in d.dead_letters()] == ["divide"]


def _leave() -> None:
    raise SystemExit(3)


def _cancelled() -> None:
    import asyncio

    raise asyncio.CancelledError


def _interrupted() -> None:
    raise KeyboardInterrupt


class NoException(BaseException):
    pass


def _no_exception() -> None:
    raise NoException


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even a message")


def _mute() -> None:
    raise Mute


def _half_a_character() -> None:
    raise ValueError("\udc80 is a lone surrogate")


def _deep() -> None:
    _deep()


def _huge() -> None:
    raise ValueError("x" * 3_000_000)


class Unmade(DataError):
    def __init__(self) -> None:
        """Leaves out what the class above sets."""


def _unmade() -> None:
    raise Unmade


def _changed(name: str, value: object) -> Callable[[], None]:
    def poison() -> None:
        error = RetryLater() if name == "retry_after" else DataError("bad")
        setattr(error, name, value)
        raise error

    return poison


PLAIN = [_leave, _cancelled, _interrupted, _no_exception, _mute, _half_a_character, _deep, _huge, _unmade]
NODES = [_changed("node", 5), _changed("run", b""), _changed("message", None), _changed("fix", object()), _changed("code", 7)]
DELAYS = [_changed("retry_after", "5s"), _changed("retry_after", float("nan")), _changed("retry_after", -1)]


@pytest.mark.parametrize("poison", [*PLAIN, *NODES, *DELAYS])
def test_whatever_a_function_raises_its_event_becomes_a_dead_letter_and_the_next_one_goes_on(poison: Any) -> None:
    topology = Topology("poison")
    topology.source("in").map(lambda d: poison() if d["bad"] else d, name="f").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"bad": True})
        d.publish("in", {"bad": False})
        assert d.outputs("out") == [{"bad": False}]
        (letter,) = d.dead_letters()
        assert letter.node == "f"
        assert len(letter.traceback) <= 8192
        assert len(letter.message) <= 8192


def test_an_event_that_asks_for_it_is_run_again_later_under_its_own_id() -> None:
    topology = Topology("later")
    seen: list[tuple[str, float]] = []

    def patient(data: Any, ctx: Any) -> Any:
        seen.append((ctx.event.id, ctx.now.timestamp()))
        if len(seen) < 3:
            raise RetryLater(after=10.0)
        return data

    topology.source("in").map(patient, name="patient").sink("out")
    with Driver(topology) as d:
        run = d.publish("in", {"n": 1}, key="k")
        d.advance(9)
        assert len(seen) == 1
        d.advance(2)
        d.crash()
        d.advance(11)
        assert d.outputs("out") == [{"n": 1}]
        assert {id for id, _ in seen} == {run}
        (event,) = d.events("out")
        assert (event.run, event.cause, event.key) == (run, run, "k")


def test_the_context_of_an_event_is_the_same_each_time_it_is_processed() -> None:
    topology = Topology("context")
    said: list[Any] = []

    def say(data: Any, ctx: Any) -> Any:
        said.append((ctx.event.id, ctx.key, ctx.session, str(ctx.uuid()), str(ctx.uuid()), ctx.random.random()))
        if len(said) == 1:
            raise RetryLater(after=1.0)
        return data

    topology.source("in").map(say, name="say").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"n": 1}, key="k", session="s")
        d.advance(2)
        assert len(said) == 2
        assert said[0] == said[1]
        assert said[0][3] != said[0][4]


# -- events that an operator has put off: they lie in their source until their time has come
def putting_off(seconds: float) -> Topology:
    """Its operator lets every event wait until it is so old."""
    topology = Topology("reading")

    def wait(data: Any, ctx: Any) -> Any:
        if (ctx.now - ctx.event.time).total_seconds() < seconds:
            raise RetryLater(after=1.0)
        return data

    topology.source("in").map(wait, name="wait").sink("out")
    return topology


def test_an_event_that_was_put_off_waits_for_a_stream_that_is_missing(lab: MakeLab) -> None:
    one = lab(putting_off(1.0))
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    one.start()
    one.publish("in", {"n": 1})
    one.advance(0.5)
    missing = one.server.streams.pop("EVENTS")
    one.advance(2.0)  # its time has come, and nobody has noticed yet that the stream is missing
    one.server.streams["EVENTS"] = missing
    one.advance(10.0)
    assert one.outputs("out") == [{"n": 1}]


def test_an_event_that_was_put_off_survives_that_the_servers_clock_is_set_back(lab: MakeLab) -> None:
    one = lab(putting_off(33.0))  # the engine's clock is not set back at once
    one.run(one.client.bus.ensure_stream(StreamConfig("EVENTS", ["in"])))
    one.start()
    one.server._epoch -= 30.0  # as if another machine had become the leader; what comes now is older than the stream
    one.publish("in", {"n": 1})
    one.advance(60.0)
    assert one.outputs("out") == [{"n": 1}]
