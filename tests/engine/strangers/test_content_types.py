"""Which content types a source takes. The publisher names the type, so it is not the publisher who decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import pyarrow
import pytest
from engine_lab import Lab

from dspex.bus import codecs, subjects
from dspex.bus.port import NewMessage
from dspex.operators.topology import Topology

TABLE = codecs.encode(pyarrow.table({"n": [3]}), "arrow")[0]
MakeLab = Callable[..., Lab]
EVENTS: Mapping[str, bytes] = {
    codecs.JSON: b'{"n":1}',
    codecs.MSGPACK: msgpack.packb({"n": 2}),
    codecs.ARROW: TABLE,
    "Application/JSON; charset=utf-8": b'{"n":4}',
    "application/vnd.shop.order+json; v=2": b'{"n":5}',
}


def _taken(one: Lab) -> list[str]:
    """Publish an event of each type; the types of those that were no dead letter."""
    one.start()
    taken: list[str] = []
    for content_type, data in EVENTS.items():
        before = len(one.messages("out"))
        one.store(NewMessage("in", data, {subjects.CONTENT_TYPE: content_type}))
        one.advance(1)
        taken += [content_type] * (len(one.messages("out")) - before)
    assert len(taken) + len(one.letters()) == len(EVENTS)
    return taken


def _reading(codec: Any, **options: Any) -> Topology:
    topology = Topology("reading", codec=codec)
    topology.source("in", **options).map(lambda data: {"seen": True}, name="see").sink("out", codec="json")
    return topology


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_source_takes_no_tables_where_nothing_else_in_the_topology_does(lab: MakeLab, codec: str) -> None:
    one = lab(_reading(codec))
    assert _taken(one) == [name for name in EVENTS if name != codecs.ARROW]
    (letter,) = one.letters()
    assert (letter.node, letter.reason) == ("in", "DecodeError")
    assert f"takes no content type '{codecs.ARROW}'" in letter.message


@pytest.mark.parametrize("codec", ["arrow", "auto"])
def test_a_source_of_a_topology_of_tables_takes_them(lab: MakeLab, codec: str) -> None:
    assert _taken(lab(_reading(codec))) == list(EVENTS)


@pytest.mark.parametrize("accept", [[codecs.ARROW], [codecs.MSGPACK, codecs.ARROW], [codecs.JSON]])
def test_a_source_takes_what_it_says_and_nothing_else(lab: MakeLab, accept: list[str]) -> None:
    taken = [name for name in EVENTS if codecs.read_as(codecs.media_type(name)) in accept]
    assert _taken(lab(_reading("json", accept=accept))) == taken


def test_a_source_may_take_one_kind_of_json_and_no_other(lab: MakeLab) -> None:
    name = "application/vnd.shop.order+json"
    assert _taken(lab(_reading("json", accept=[name]))) == [f"{name}; v=2"]


@pytest.mark.parametrize("name", ["content-type", "CONTENT-TYPE", "Content-type"])
def test_the_content_type_is_read_whatever_the_case_of_its_header(lab: MakeLab, name: str) -> None:
    topology = Topology("reading")
    topology.source("in").sink("out")
    one = lab(topology)
    one.start()
    one.store(NewMessage("in", EVENTS[codecs.MSGPACK], {name: codecs.MSGPACK}))
    one.advance(1)
    assert one.outputs("out") == [{"n": 2}]
