"""User code that must type-check under mypy --strict and pyright strict: the quick start, and each operator once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict, assert_type

from pydantic import BaseModel, Field
from typing_extensions import TypeIs

import dspex
from dspex import (
    Context,
    KeyedStream,
    Record,
    Retry,
    Signature,
    Spec,
    Stream,
    Topology,
    Windowed,
    WindowedStream,
    chain_of_thought,
    enrich,
    errors,
    predict,
    program,
    react,
)
from dspex.codecs import register_codec
from dspex.errors import Reject
from dspex.metrics import f1
from dspex.testing import Driver


class Message(BaseModel):
    customer: str
    text: str = Field(min_length=1, max_length=4000)


class Triaged(Message):
    intent: Literal["card_arrival", "lost_card", "exchange_rate", "other"]
    urgency: int = Field(ge=1, le=5)


class Typed(TypedDict):
    text: str


@dataclass
class Point:
    x: int


def clean(m: Record) -> Record:
    return {**m, "text": " ".join(m["text"].split())}


async def find(m: Message) -> dict[str, int]:
    return {"orders": len(m.text)}


# -- the quick start
topology = Topology("support-triage")
triaged = (
    topology.source("support.messages")
    .map(clean)
    .validate(Message)
    .predict(
        "text -> intent: Literal['card_arrival','lost_card','exchange_rate','other'], urgency: int",
        name="classify",
        pool="lightweight",
        into=Triaged,
    )
)
urgent, routine = triaged.branch("urgency >= 4")
urgent.program("programs:DraftReply", "text, intent -> reply", name="draft", pool="writers").sink("support.replies")
routine.sink("support.queue")
assert_type(triaged, Stream[Triaged])
assert_type(urgent, Stream[Triaged])


# -- each operator
def word(m: Message, ctx: Context) -> str:
    return f"{m.text} {ctx.now} {ctx.random.random()} {ctx.uuid()}"


def words(m: Message) -> Iterator[str]:
    yield from m.text.split()


def is_triaged(m: Message) -> TypeIs[Triaged]:
    return isinstance(m, Triaged)


def kyc(s: Stream[Message]) -> tuple[Stream[Message], Stream[Record]]:
    return s, s.set({"ok": "true"})


def keyed(s: KeyedStream[Message]) -> Stream[Message, str]:
    return s.filter(lambda m: bool(m.text))


messages = topology.source("m", Message, start=datetime(2026, 1, 1), partitions=4, on_gap="skip", time="at")
assert_type(topology.source("r"), Stream[Record])
assert_type(messages, Stream[Message])
assert_type(messages.map(word), Stream[str])
assert_type(messages.map(lambda m: m.customer, name="c"), Stream[str])
assert_type(messages.flat_map(words), Stream[str])
assert_type(messages.filter("urgency > 1"), Stream[Message])
assert_type(messages.filter(lambda m: m.text == ""), Stream[Message])
assert_type(messages.filter(is_triaged), Stream[Triaged])
one, two, rest = messages.branch("a", lambda m: m.text == "")
a, b, c, d, e, f = messages.branch("a", "b", "c", "d", "e")
assert_type(rest, Stream[Message])
assert_type(f, Stream[Message])
assert_type(messages.merge(messages.map(word)), Stream[Message | str])
assert_type(messages.set({"n": "len(text)"}), Stream[Record])
assert_type(messages.set({"n": "len(text)"}, into=Point), Stream[Point])
assert_type(messages.validate(Typed, on_error="skip"), Stream[Typed])
assert_type(messages.validate({"type": "object"}), Stream[Record])
assert_type(messages.render("Dear {customer}", field="mail"), Stream[Record])
assert_type(messages.render("Dear {{ customer }}", field="mail", syntax="jinja", into=Point), Stream[Point])
assert_type(messages.render(Signature("text -> lang"), field="messages", adapter="xml"), Stream[Record])
assert_type(messages.parse("text -> x: int", field="text", into=Point), Stream[Point])
assert_type(messages.parse(Signature("-> lang"), field="text", adapter="pairs", name="p"), Stream[Record])
assert_type(messages.score("f1", expected="text", actual="customer"), Stream[Record])
assert_type(messages.score(lambda actual, expected: actual == expected, expected="a", actual="b", field="s"), Stream[Record])
assert_type(messages.through(kyc, name="kyc"), tuple[Stream[Message], Stream[Record]])
messages.sink("replies.{intent}", codec="msgpack")

# -- keys, state and time
by_customer = messages.key_by("customer")
assert_type(by_customer.batch(10, within="5s", name="ten"), Stream[list[Message], str])
assert_type(messages.batch(10, within=5, name="ten"), Stream[list[Message]])
assert_type(messages.dedupe("text", within="1h", name="once"), Stream[Message])
assert_type(by_customer.throttle("10/s", name="slow", burst=3), Stream[Message, str])
assert_type(by_customer.debounce("5s", name="calm"), Stream[Message, str])
assert_type(by_customer.approve(name="ok", show=["text"], timeout="1d", on_timeout="pass"), Stream[Message, str])
others = topology.source("o").key_by("customer", name="other_customer")
assert_type(by_customer.join(others, within="5m", name="pairs"), Stream[tuple[Message, Record], str])
assert_type(by_customer.join(others, within="5m", how="left", name="l"), Stream[tuple[Message, Record | None], str])
assert_type(by_customer.lookup(others, ttl="1d", name="known"), Stream[tuple[Message, Record | None], str])

assert_type(dspex.gather(messages, messages.map(word), name="both", within="1m"), Stream[Record])
assert_type(dspex.gather(by_customer, by_customer, name="both", within="1m", into=Triaged), Stream[Triaged, str])
windows = by_customer.window("1m", every="10s", lateness=5, late="skip")
assert_type(windows, WindowedStream[Message])
assert_type(windows.count(name="many"), Stream[Windowed[int], str])
assert_type(windows.collect(name="all", limit=10), Stream[Windowed[list[Message]], str])
assert_type(windows.reduce(lambda a, b: b, name="last"), Stream[Windowed[Message], str])
assert_type(windows.aggregate(int, lambda n, m: n + len(m.text), name="size"), Stream[Windowed[int], str])
assert_type(by_customer.session_window("30s").count(name="visits").map(lambda w: w.value + 1), Stream[int, str])
assert_type(by_customer.aggregate(int, lambda n, m: n + 1, name="n", ttl="1d"), Stream[int, str])
assert_type(by_customer.reduce(lambda a, b: a, name="first"), Stream[Message, str])
topology.source("timed", time="sent", idle="1m", hold=60)
daily = topology.cron("0 3 * * *", name="daily", zone="Europe/Berlin", data={"n": 1}, missed="all")
assert_type(daily, Stream[Record])

# -- recorded operators and specs
assert_type(messages.predict("text -> lang", name="p"), Stream[Record])
messages.chain_of_thought(
    Signature("text -> lang", instructions="Be brief."),
    name="cot",
    lm=["big", "main"],
    inputs={"text": "upper(text)"},
    config={"temperature": 0.0, "max_tokens": 10},
    adapter="json",
    timeout="30s",
    deadline=600,
    retry=Retry(attempts=2, backoff="500ms"),
    fallback=lambda data: {"lang": "en"},
    on_error="skip",
    order="key",
    priority=0,
)
messages.react("text -> reply", tools=["shop:find"], max_iters=3, name="r", fallback={"reply": "Sorry"})
messages.program(Message, "text -> reply", state="draft@3", name="prog", into=Triaged)
assert_type(messages.enrich(find, name="found", pool="shop", timeout="5s", order="key"), Stream[Record])
assert_type(messages.enrich("shop:find", name="found", into=Triaged), Stream[Triaged])
specs: tuple[Spec[Record], Spec[Triaged], Spec[Record], Spec[Record]] = (
    predict("text -> lang"),
    chain_of_thought("text -> lang", into=Triaged),
    react("text -> reply", tools=["shop:find"]),
    program("programs:Draft", "text -> reply", pool="writers"),
)
enriches: tuple[Spec[Record], Spec[Triaged]] = enrich("shop:find"), enrich(find, into=Triaged, pool="shop")
assert_type(messages.call(specs[1], name="called"), Stream[Triaged])
assert_type(specs[1].with_options(pool="x"), Spec[Triaged])

# -- the topology
problems: list[errors.Problem] = topology.check()
digest: str = topology.freeze().digest
text: str = topology.to_yaml() + topology.to_mermaid()
names: list[str] = [n.name for n in topology.describe().nodes]
loaded: Topology = Topology.load("triage.yaml")
signature = Signature.of(Message, Triaged)
outputs: dict[str, Any] = signature.check_outputs({"urgency": 1})


# -- clients
def script() -> None:
    with dspex.sync.connect() as c:
        assert_type(c, dspex.sync.Client)
        assert_type(c.call(specs[1], {"text": "hi"}).data, Triaged)
        assert_type(c.call("text -> lang", {"text": "hi"}).data, Record)
        sent = c.publish("support.messages", {"text": "hi"}, key="c1")
        assert_type(sent, dspex.sync.Run)
        assert_type(sent.wait("10s").status, str)
        for event in c.watch("support.replies"):
            assert_type(event, dspex.Event[Any])


async def service() -> None:
    async with dspex.connect() as c:
        assert_type((await c.call(specs[1], {"text": "hi"})).data, Triaged)
        assert_type((await c.call("text -> lang", {"text": "hi"})).data, Record)
        assert_type(await c.publish("support.messages", {}), dspex.Run)
        async with c.session("c1", ttl="1d", policy="latest") as session:
            assert_type(session, dspex.Session)
            assert_type((await session.call(specs[1], {"text": "hi"}, id="q1")).data, Triaged)
            assert_type((await session.stream("text -> lang", {"text": "hi"}).result()).data, Record)
            assert_type(await session.save({}, 0), int)


# -- the modules
def refused(data: Record) -> Record:
    raise Reject("no text")


register_codec("application/x-point", encode=lambda p: str(p.x).encode(), decode=lambda b: Point(int(b)), types=[Point])
similarity: float = f1("a b", "a c")


def test_topology() -> None:
    with Driver(topology) as driver:
        assert_type(driver.publish("m", {}), str)
        assert_type(driver.outputs("replies"), list[Any])
