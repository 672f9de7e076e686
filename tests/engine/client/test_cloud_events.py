"""CloudEvents through an application: from what others publish to what others read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from engine_lab import APP, SOURCES, Lab

from dspex.bus import codecs, subjects
from dspex.bus.message import partition_of
from dspex.bus.port import NewMessage
from dspex.engine.client import letters
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ATTRIBUTES = {
    "specversion": "1.0", "id": "A-1", "source": "/shop", "type": "sold", "subject": "ann", "time": "2026-03-04T05:06:07Z",
    "correlationid": "order-9", "traceparent": TRACE, "tracestate": "congo=a",
}  # fmt: skip
STRUCTURED = NewMessage(
    "in", json.dumps({**ATTRIBUTES, "data": {"n": 1}}).encode(), {"content-type": "application/cloudevents+json"}
)
BINARY = NewMessage("in", b'{"n":1}', {f"Ce-{name}": value for name, value in ATTRIBUTES.items()})
BOTH = pytest.mark.parametrize("message", [STRUCTURED, BINARY], ids=["structured", "binary"])


def _topology(partitions: int = 1, **sink: Any) -> Topology:
    topology = Topology("shop")
    topology.source("in", accept=[codecs.JSON], partitions=partitions).map(_seen, name="see").sink("out.{who}", **sink)
    return topology


def _seen(data: dict[str, Any], ctx: Any) -> dict[str, Any]:
    e = ctx.event
    said = {name: value for name, value in e.headers.items() if name.startswith("ce-")}
    return {"n": data["n"], "who": e.key or "nobody", "time": e.time, "said": said, "run": e.run == e.id}


@BOTH
def test_an_event_of_others_has_the_key_and_the_time_that_it_says(lab: MakeLab, message: NewMessage) -> None:
    one = lab(_topology())
    one.start()
    one.store(message)
    one.advance(1)
    assert one.letters() == []
    (out,) = one.messages("out.*")
    said = {f"ce-{name}": value for name, value in ATTRIBUTES.items() if name != "specversion"}
    data = codecs.decode(out.data)
    assert data == {"n": 1, "who": "ann", "time": ATTRIBUTES["time"].replace("Z", "+00:00"), "said": said, "run": True}
    assert (out.subject, out.headers[subjects.KEY], out.headers[subjects.TRACEPARENT]) == ("out.ann", "ann", TRACE)
    assert out.headers[subjects.TRACESTATE] == "congo=a"


@BOTH
def test_events_of_one_key_are_in_one_partition(lab: MakeLab, message: NewMessage) -> None:
    topology = Topology("shop")
    topology.source("in", partitions=8).sink("out")
    one = lab(topology)
    one.start()
    one.store(message)
    one.store(NewMessage("in", b"{}", {subjects.KEY: "ann"}))
    one.advance(1)
    taken = {m.subject.rpartition(".")[2] for m in one.messages(subjects.log(APP, "shop", "*", "*")) if b"source" in m.data}
    assert taken == {str(partition_of("ann", 8))}


@BOTH
def test_the_run_of_an_event_of_others_is_done_when_its_own_partition_has_taken_it(lab: MakeLab, message: NewMessage) -> None:
    one = lab(_topology(8))
    one.start()
    one.drain()
    one.store(message)
    run = f"{SOURCES}@1"
    assert one.run(one.client.run(run).info()).status == "running"
    one.start("b")
    one.advance(1)
    assert one.run(one.client.run(run).info()).status == "done"


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_a_sink_writes_what_the_official_sdk_reads(lab: MakeLab, mode: str) -> None:
    one = lab(_topology(cloudevents=mode))
    one.start()
    traced = {"traceparent": TRACE, "tracestate": "congo=a"}
    run = one.publish("in", {"n": 2}, key="bob", time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), headers=traced)
    one.advance(1)
    (out,) = one.messages("out.bob")
    event = http.from_http(http.HTTPMessage(dict(out.headers), out.data), JSONFormat())
    assert event.get_attributes() == {
        "specversion": "1.0",
        "id": out.headers[subjects.EVENT_ID],
        "source": "/dspex/shop/out.%7Bwho%7D",
        "type": "out.bob",
        "subject": "bob",
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "datacontenttype": "application/json",
        "correlationid": run,
        "causationid": run,
        **traced,
    }
    data: Any = event.get_data()
    assert (data if isinstance(data, dict) else json.loads(data))["n"] == 2
    (seen,) = one.run(one.client.run(run).outputs())
    assert (seen.data["n"], seen.key, seen.run, seen.time.year) == (2, "bob", run, 2026)
    assert seen.headers["ce-type"] == "out.bob"


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_a_topology_reads_the_cloud_events_of_another(lab: MakeLab, mode: Any) -> None:
    first, second = Topology("first", codec="msgpack"), Topology("second")
    first.source("in").sink("between", cloudevents=mode)
    second.source("between").sink("out")
    one = lab(first, second)
    one.start()
    run = one.publish("in", {"n": 3}, key="k", session="s")
    one.advance(1)
    (out,) = one.messages("out")
    assert (codecs.decode(out.data), out.headers[subjects.RUN]) == ({"n": 3}, run)
    assert (out.headers[subjects.KEY], out.headers[subjects.SESSION]) == ("k", "s")


BROKEN: Mapping[str, NewMessage] = {
    "structured": STRUCTURED._replace(data=STRUCTURED.data.replace(b'"source"', b'"sauce"')),
    "binary": BINARY._replace(headers={name: value for name, value in (BINARY.headers or {}).items() if name != "Ce-source"}),
    "batch": STRUCTURED._replace(headers={"Content-Type": "application/cloudevents-batch+json"}),
    "of another type": BINARY._replace(headers={**(BINARY.headers or {}), "ce-datacontenttype": codecs.MSGPACK}),
    "of a year that there is not": BINARY._replace(headers={**(BINARY.headers or {}), "Ce-time": "9999-12-31T23:59:59-12:00"}),
    "with a key that is too long": BINARY._replace(headers={**(BINARY.headers or {}), "Ce-subject": "k" * 5000}),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("partitions", [1, 8])
def test_a_cloud_event_that_cannot_be_taken_is_a_dead_letter(lab: MakeLab, kind: str, partitions: int) -> None:
    one = lab(_topology(partitions))
    one.start()
    one.store(BROKEN[kind])
    one.advance(1)
    (letter,) = one.letters()
    long = "long" in kind
    assert (letter.node, letter.reason) == ("in", "InvalidInput" if long else "DecodeError")
    assert one.messages("out.*") == []


@pytest.mark.parametrize("kind", ["structured", "binary"])
def test_a_dead_letter_is_redriven_with_other_data(lab: MakeLab, kind: str) -> None:
    one = lab(_topology())
    one.start()
    one.store(BROKEN[kind])
    one.store(STRUCTURED._replace(data=STRUCTURED.data.replace(b'"n"', b'"m"')))
    one.advance(1)
    broken, whole = one.letters()
    assert (whole.event.data, whole.event.key) == ({"m": 1}, "ann")
    for letter in (broken, whole):
        one.run(letters.redrive(one.client.bus, APP, [letter], data={"n": 5}))
        one.advance(2)
    assert [m.subject for m in one.messages("out.*")] == ["out.nobody", "out.ann"]


@pytest.mark.parametrize("name", ["application/cloudevents+json", "application/cloudevents"])
def test_a_source_is_told_the_content_type_of_the_data_and_not_of_the_envelope(name: str) -> None:
    topology = Topology("shop")
    topology.source("in", accept=[name]).sink("out")
    (problem,) = topology.check()
    assert "the content type of the data in a CloudEvent" in problem.fix


def test_a_content_mode_that_is_none_is_refused() -> None:
    topology = Topology("shop")
    topology.source("in").sink("out", cloudevents="batch")  # type: ignore[arg-type]
    (problem,) = topology.check()
    assert (problem.code, "structured, binary" in problem.fix) == ("DX205", True)
