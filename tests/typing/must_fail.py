"""What both type checkers must refuse (API.md, 2.9): each line marked `# error`, and no other."""

from __future__ import annotations

from pydantic import BaseModel

import dspex
from dspex import Record, Signature, Stream, Topology, predict


class Message(BaseModel):
    customer: str
    text: str


def three(a: Message, b: int, c: int) -> Message:
    return a


def of_text(t: str) -> str:
    return t


def of_record(s: Stream[Record]) -> Stream[Record]:
    return s


messages = Topology("t").source("m", Message)


async def find(m: Message) -> dict[str, int]:
    return {}


# a recorded operator without a name
messages.enrich(find)  # error
messages.predict("text -> lang")  # error
messages.call(predict("text -> lang"))  # error
# a misspelt option
messages.predict("text -> lang", name="p", pol="x")  # error
messages.enrich(find, name="f", lm="main")  # error
messages.enrich(of_text, name="f")  # error
predict("text -> lang", pol="x")  # error
Topology("t").source("s", partitons=3)  # error
# a wrong option value
messages.predict("text -> lang", name="p", on_error="stop")  # error
messages.predict("text -> lang", name="p", order="random")  # error
messages.predict("text -> lang", name="p", priority="urgent")  # error
messages.validate(Message, on_error="drop")  # error
messages.sink("out", codec="pickle")  # error
Topology("t", codec="xml")  # error
messages.predict("text -> lang", name="p", config={"temprature": 1.0})  # error
# a branch unpacked into the wrong number
one, two, three_ = messages.branch("a")  # error
only, other = messages.branch("a", "b")  # error
# a filter that is not bool
messages.filter(lambda m: m.text)  # error
messages.branch(lambda m: m.text)  # error
# a missing model field in a lambda
messages.map(lambda m: m.txt)  # error
messages.filter(lambda m: m.txt == "")  # error
# a map of the wrong arity or input type
messages.map(three)  # error
messages.map(of_text)  # error
messages.flat_map(lambda m: 5)  # error
messages.through(of_record, name="part")  # error
# anything after sink
messages.sink("out").map(of_text)  # error
# render, parse and score
messages.render("Dear {customer}")  # error
messages.render("Dear {customer}", field="mail", syntax="mustache")  # error
messages.render("Dear {customer}", field="mail", adapter="chat")  # error
messages.render(Signature("a -> b"), field="m", syntax="jinja")  # error
messages.parse("a -> b")  # error
messages.parse("a -> b", field="text", adapter="yaml")  # error
messages.score("f1", expected="a")  # error
messages.score(lambda actual, expected: "good", expected="a", actual="b")  # error
messages.score(lambda actual: 1.0, expected="a", actual="b")  # error
# an expression where fields are wanted
messages.set("text")  # error
messages.react("text -> a", name="r")  # error
# what needs a key, without one; and state without a name
messages.debounce("5s", name="calm")  # error
messages.batch(10, within="5s")  # error
messages.dedupe(lambda m: m.text, within="5s", name="once")  # error
messages.join(messages.key_by("customer"), within="5s", name="j")  # error
messages.key_by("customer").join(messages, within="5s", name="j")  # error
messages.key_by("customer").lookup(messages, name="l")  # error
dspex.gather(messages, messages, within="1m")  # error
# a window without a key, also where only one of merged streams has one; or without what it gives
messages.window("1m")  # error
messages.merge(messages.key_by("customer")).session_window("1m")  # error
messages.key_by("customer").window("1m").sink("out")  # error
messages.key_by("customer").window("1m").map(of_text)  # error
messages.key_by("customer").window("1m").count()  # error
messages.key_by("customer").window("1m", latenes="5s")  # error
messages.key_by("customer").window("1m", late="drop")  # error
messages.key_by("customer").window("1m").reduce(lambda a: a, name="r")  # error
messages.aggregate(int, lambda n, m: n, name="n")  # error
