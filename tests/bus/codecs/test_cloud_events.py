"""CloudEvents 1.0 as its official SDK reads and writes them, and what breaks the specification."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as Official

from dspex.bus import codecs
from dspex.bus.codecs import cloud_events
from dspex.bus.errors import DecodeError

AT = datetime(2026, 3, 4, 5, 6, 7, 890000, UTC)
ATTRIBUTES: Mapping[str, Any] = {
    "id": "A-1", "source": "/shop/tills", "type": "shop.sold", "subject": "customer 7 – “Ann” 100%", "time": AT,
    "datacontenttype": "application/json", "tenant": "zürich",
}  # fmt: skip
WRITTEN = {name: value for name, value in ATTRIBUTES.items() if name not in ("time", "datacontenttype")}
PLAIN = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}
HEADERS = {f"ce-{name}": value for name, value in PLAIN.items()}
WRITE: Mapping[str, Any] = {"structured": http.to_structured, "binary": http.to_binary}


def _read(message: http.HTTPMessage) -> cloud_events.CloudEvent:
    headers = {name.lower(): value for name, value in message.headers.items()}
    found = cloud_events.read(headers.pop("content-type", None), headers, bytes(message.body))
    assert found is not None
    return found


@pytest.mark.parametrize("mode", WRITE)
@pytest.mark.parametrize(("data", "kind"), [({"n": 1, "t": "é"}, codecs.JSON), (b"\x81\xa1n\x01", codecs.MSGPACK)])
def test_what_the_official_sdk_writes_is_read(mode: str, data: Any, kind: str) -> None:
    found = _read(WRITE[mode](Official({**ATTRIBUTES, "datacontenttype": kind}, data), JSONFormat()))
    assert {**found.attributes, "time": AT} == {**WRITTEN, "time": AT}
    assert found.time == AT.timestamp()
    assert (found.content_type, codecs.decode(found.data, kind)) == (
        kind,
        {"n": 1, "t": "é"} if kind == codecs.JSON else {"n": 1},
    )


@pytest.mark.parametrize("mode", ["structured", "binary"])
@pytest.mark.parametrize(("body", "kind"), [(b'{"n":1.50}', codecs.JSON), (b"\x81\xa1n\xff", codecs.MSGPACK)])
def test_the_official_sdk_reads_what_is_written(mode: Any, body: bytes, kind: str) -> None:
    attributes = {**WRITTEN, "time": cloud_events.rfc3339(AT.timestamp())}
    data, headers = cloud_events.write(mode, attributes, body, kind)
    event = http.from_http(http.HTTPMessage(headers, data), JSONFormat())
    assert {**event.get_attributes()} == {**ATTRIBUTES, "specversion": "1.0", "datacontenttype": kind}
    assert event.get_data() in (body, json.loads(body) if kind == codecs.JSON else body)


def test_a_message_that_says_nothing_of_it_is_no_cloud_event() -> None:
    assert cloud_events.read(None, {}, b"{}") is None
    assert cloud_events.read("application/json", {"ce-id": "1", "x-own": "2"}, b"{}") is None


@pytest.mark.parametrize("name", ["ce-specversion", "Ce-Specversion", "CE-SPECVERSION"])
def test_headers_are_read_whatever_their_case(name: str) -> None:
    found = cloud_events.read(None, {**{k: v for k, v in HEADERS.items() if k != "ce-specversion"}, name: "1.0"}, b"1")
    assert found is not None
    assert found.attributes == {"id": "1", "source": "s", "type": "t"}


def test_a_quoted_header_of_an_older_writer_is_read() -> None:
    found = cloud_events.read(None, {**HEADERS, "ce-subject": r'"a \"b\" c"'}, b"1")
    assert found is not None
    assert found.attributes["subject"] == 'a "b" c'


@pytest.mark.parametrize(
    ("more", "data", "kind"),
    [
        ({}, None, codecs.JSON),
        ({"data": None, "subject": None}, None, codecs.JSON),
        ({"data": {"a": [1, 18446744073709551615]}}, {"a": [1, 18446744073709551615]}, codecs.JSON),
        ({"data": "text", "datacontenttype": "application/vnd.x+json"}, "text", "application/vnd.x+json"),
        ({"data": '{"a":1}', "datacontenttype": "application/x-msgpack"}, 0x7B, "application/x-msgpack"),
        ({"data_base64": "gaFuAQ==", "datacontenttype": codecs.MSGPACK}, {"n": 1}, codecs.MSGPACK),
        ({"data_base64": "eyJuIjoyfQ=="}, {"n": 2}, codecs.JSON),
    ],
)
def test_data_is_found_where_the_json_format_puts_it(more: dict[str, Any], data: Any, kind: str) -> None:
    body = json.dumps({**PLAIN, **more}).encode()
    found = cloud_events.read("application/cloudevents", {}, body)
    assert found is not None
    assert found.content_type == kind
    if "data" not in more or kind != "application/x-msgpack":
        assert codecs.decode(body, cloud_events.STRUCTURED) == codecs.decode(found.data, kind) == data
    else:
        assert found.data == b'{"a":1}'


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
def test_what_every_event_has_may_not_be_missing(name: str) -> None:
    left = {k: v for k, v in PLAIN.items() if k != name}
    with pytest.raises(DecodeError, match=f"it has no {name}"):
        cloud_events.read(cloud_events.STRUCTURED, {}, json.dumps(left).encode())
    if name != "specversion":
        with pytest.raises(DecodeError, match=f"it has no {name}"):
            cloud_events.read(None, {f"ce-{k}": v for k, v in left.items()}, b"1")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"specversion": "0.3"}, "specversion is '0.3'"),
        ({"source": ""}, "it has no source"),
        ({"time": "yesterday"}, "its time 'yesterday' is none of RFC 3339"),
        ({"time": "2026-01-01"}, "is none of RFC 3339"),
        ({"time": "9999-12-31T23:59:59-12:00"}, "is none of RFC 3339"),
        ({"time": "9999-12-31T23:59:59.9999999Z"}, "is none of RFC 3339"),
        ({"time": "0001-01-01T00:00:00+12:00"}, "is none of RFC 3339"),
        ({"time": "2026-13-01T00:00:00Z"}, "is none of RFC 3339"),
        ({"subject": "a\r\nNats-Rollup: all"}, "'subject' has control characters"),
        ({"my_own": "1"}, "'my_own' is no name of an attribute"),
        ({"x": {"y": 1}}, "attribute 'x' is of the JSON type dict"),
        ({"x": 1.5}, "attribute 'x' is of the JSON type float"),
        ({"data": 1, "data_base64": "AA=="}, "both data and data_base64"),
        ({"data_base64": "%"}, "not base64"),
        ({"data_base64": 7}, "not base64"),
        ({"data": {"a": 1}, "datacontenttype": "text/xml"}, "'text/xml', and neither text nor data_base64"),
    ],
)
def test_a_structured_event_that_breaks_the_specification_is_refused_with_the_reason(more: dict[str, Any], why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        cloud_events.read(cloud_events.STRUCTURED, {}, json.dumps({**PLAIN, **more}).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"specversion":"1.0","data":%b}' % (b"[" * 500 + b"]" * 500)])
def test_a_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        cloud_events.read(cloud_events.STRUCTURED, {}, body)


@pytest.mark.parametrize(
    ("header", "why"), [("%C0%A0", "not UTF-8"), ("a%0D%0Ab", "control characters"), ("\x07", "control characters")]
)
def test_a_header_that_breaks_the_specification_is_refused(header: str, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        cloud_events.read(None, {**HEADERS, "ce-subject": header}, b"1")


@pytest.mark.parametrize(
    "name", ["application/cloudevents-batch+json", "application/cloudevents+xml", "Application/CloudEvents+avro"]
)
def test_batches_and_other_formats_are_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(DecodeError, match="is no form of a CloudEvent that is read") as e:
        codecs.decode(b"[]", name)
    assert "a message of its own" in e.value.fix
