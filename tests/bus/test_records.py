"""The wire forms: whole on the other side, and open to older and newer versions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex.bus import subjects
from dspex.bus.errors import CallTimeout, DecodeError, InvalidInput, Unreachable, from_dict
from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, StreamConfig
from dspex.bus.records import (
    CallRecord,
    CallRequest,
    Letter,
    NodeEvent,
    Origin,
    RecordTo,
    StoredAt,
    Usage,
    pack_frame,
    unpack_event,
    unpack_frame,
)
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.record_store import RecordStore

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
maps = st.dictionaries(
    texts, st.none() | st.integers(-(2**63), 2**64 - 1) | texts | st.binary(max_size=20) | st.floats(allow_nan=False)
)
origins = st.builds(
    Origin, texts, texts, texts, cause=st.none() | texts, session=st.none() | texts, time=st.floats(allow_nan=False),
    sequence=st.integers(0, 2**63), headers=st.none() | st.dictionaries(texts, texts),
)  # fmt: skip
events = st.builds(
    NodeEvent, texts, origins, texts, st.binary(max_size=20), call=st.none() | texts, outputs=st.none() | maps,
    attempts=st.integers(0, 2**31),
).filter(lambda event: event.outputs is None or event.call is not None)  # fmt: skip
targets = st.builds(RecordTo, texts, texts, st.integers(0, 2**53), st.binary(max_size=20))
SPEC = CallSpec("predict", "a -> b", "a -> b")
requests = st.builds(
    CallRequest, texts, st.integers(1, 2**53), st.integers(1, 100), texts, texts,
    st.builds(CallSpec, texts, texts, texts, lm=st.lists(texts).map(tuple), config=maps), maps, texts,
    session=st.none() | texts, timeout=st.floats(0, 1e9), left=st.floats(-1e9, 1e9), invalid=st.integers(0, 9),
    alone=st.booleans(), record=st.none() | targets,
)  # fmt: skip
records = st.builds(
    CallRecord, texts, st.integers(1, 2**53), st.integers(1, 100), texts, texts, number=st.none() | st.integers(0, 2**53),
    event=st.binary(max_size=20), outputs=st.none() | maps, error=st.none() | maps, started=st.floats(0, 1e10), usage=maps,
)  # fmt: skip
letters = st.builds(
    Letter, texts, texts, events, texts, maps, traceback=texts, time=st.floats(0, 1e10),
    stored=st.none() | st.builds(StoredAt, texts, st.integers(1, 2**63)), headers=st.dictionaries(texts, texts),
)  # fmt: skip
REQUEST = CallRequest("c", 3, 2, "t", "n", SPEC, {"text": "hello"}, "r", record=RecordTo("s", "i", 5, b"event"))
EVENT = NodeEvent("n", Origin("i", "s", "r"), "application/json", b"{}")
RECORD = CallRecord("c", 1, 1, "t", "n")
LETTER = Letter("t", "n", EVENT, "e", {})
PACKED = (REQUEST, RECORD, LETTER)
READERS: dict[str, Callable[[bytes], object]] = {
    "request": CallRequest.unpack,
    "record": CallRecord.unpack,
    "letter": Letter.unpack,
    "event": unpack_event,
    "frame": unpack_frame,
}
reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats()
leaves = (
    st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.binary(max_size=5)
)
junk = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=9) | st.dictionaries(leaves, inner, max_size=4), max_leaves=20
)


@given(requests | records | letters)
def test_a_request_a_record_and_a_letter_survive_packing(item: CallRequest | CallRecord | Letter) -> None:
    assert type(item).unpack(item.pack()) == item


@given(st.lists(events, max_size=4))
def test_an_event_survives_packing_alone_and_in_a_frame(items: list[NodeEvent]) -> None:
    assert [unpack_event(e.pack()) for e in items] == items
    assert unpack_frame(pack_frame(items)) == items


def test_the_event_of_a_call_comes_back_byte_for_byte() -> None:
    to = REQUEST.record
    assert to is not None
    event = NodeEvent("n", Origin("i", "s", "r"), "application/json", b'{"a": 1}').pack()
    asked = CallRequest.unpack(dataclasses.replace(REQUEST, record=to._replace(event=event)).pack())
    assert asked.record is not None
    answered = CallRecord.unpack(dataclasses.replace(RECORD, event=asked.record.event).pack())
    assert answered.event == event


def test_a_dead_letter_keeps_the_class_of_its_error() -> None:
    letter = dataclasses.replace(LETTER, error=CallTimeout("slow").as_dict())
    assert isinstance(from_dict(Letter.unpack(letter.pack()).error), CallTimeout)


@pytest.mark.parametrize("item", PACKED, ids=lambda item: type(item).__name__)
def test_a_field_of_a_newer_version_is_ignored_and_a_missing_one_has_its_default(item: Any) -> None:
    cls = type(item)
    needed = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    raw = {k: v for k, v in msgpack.unpackb(item.pack()).items() if k in needed}
    assert cls.unpack(msgpack.packb({**raw, "invented_later": 1})) == cls(**{n: getattr(item, n) for n in needed})


# -- what is no record -----------------------------------------------------------------------------------------------
@reader
@given(data=st.binary(max_size=60) | junk.map(msgpack.packb))
def test_garbage_is_refused_with_one_class_of_error(read: Callable[[bytes], object], data: bytes) -> None:
    try:
        found = read(data)
    except DecodeError:
        return
    assert found == []  # an empty list is a frame


@reader
@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xc1", msgpack.packb({}), msgpack.packb("call"), msgpack.packb([1, 2]), b"\x07"]
)
def test_bytes_that_hold_no_record_of_dspex_are_a_decode_error(read: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(DecodeError):
        read(data)


def _paths(value: object, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the parts of a decoded value are, the nested ones too."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*above, key)
        yield from _paths(part, (*above, key))


def _set(value: Any, path: tuple[Any, ...], new: object) -> Any:
    """The value with another part at the path."""
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _set(copy[path[0]], path[1:], new) if path[1:] else new
    return copy


@pytest.mark.parametrize("item", PACKED, ids=lambda item: type(item).__name__)
@given(data=st.data())
def test_a_part_that_is_replaced_by_anything_gives_a_record_or_a_decode_error(item: Any, data: st.DataObject) -> None:
    raw = msgpack.unpackb(item.pack())
    path = data.draw(st.sampled_from(sorted(_paths(raw), key=str)))
    packed = msgpack.packb(_set(raw, path, data.draw(junk)))
    with contextlib.suppress(DecodeError):
        found = type(item).unpack(packed)
        assert type(item).unpack(found.pack()) == found or "nan" in repr(found)


@pytest.mark.parametrize(
    ("item", "path", "wrong"),
    [
        (REQUEST, ("try_number",), "1"),
        (REQUEST, ("try_number",), 1.5),
        (REQUEST, ("try_number",), True),
        (REQUEST, ("call",), b"c"),
        (REQUEST, ("alone",), 1),
        (REQUEST, ("inputs",), [1]),
        (REQUEST, ("inputs",), {1: 2}),
        (REQUEST, ("left",), "long"),
        (REQUEST, ("record", "number"), "five"),
        (REQUEST, ("record", "event"), "text"),
        (REQUEST, ("record",), ["s", "i", "five", b""]),
        (REQUEST, ("record",), ["s"]),
        (REQUEST, ("record",), ["s", "i", 5, b"", "more"]),
        (RECORD, ("outputs",), "yes"),
        (RECORD, ("event",), "text"),
        (RECORD, ("number",), "7"),
        (LETTER, ("event",), ["n"]),
        (LETTER, ("event", "origin"), ["i", "s"]),
        (LETTER, ("event", "origin", "time"), "noon"),
        (LETTER, ("headers",), {"a": 1}),
        (LETTER, ("stored",), ["S", "seven"]),
    ],
)
def test_a_part_of_a_wrong_type_is_named_and_not_shown(item: Any, path: tuple[Any, ...], wrong: Any) -> None:
    packed = msgpack.packb(_set(msgpack.unpackb(item.pack()), path, wrong))
    with pytest.raises(DecodeError, match=f"not a {type(item).__name__} of dspex: {path[0]}"):
        type(item).unpack(packed)


def test_values_in_a_record_are_converted_as_those_in_an_event() -> None:
    request = dataclasses.replace(
        REQUEST,
        spec=CallSpec("predict", "a -> b", "a -> b", lm=("main", "big")),
        inputs={"at": datetime(2026, 5, 4, tzinfo=UTC), "by_rank": {1: "a"}},
    )
    again = CallRequest.unpack(request.pack())
    assert again.inputs == {"at": "2026-05-04T00:00:00+00:00", "by_rank": {1: "a"}}
    assert again.spec == request.spec


def test_what_cannot_be_sent_is_refused_and_never_turned_into_its_description() -> None:
    with pytest.raises(InvalidInput, match=r"data\.inputs\.x is a object"):
        dataclasses.replace(REQUEST, inputs={"x": object()}).pack()


def test_usage_adds_up_and_an_unknown_price_does_not_hide_a_known_one() -> None:
    assert Usage(1, 2, 0.5) + Usage(10, 20, 0.25) == Usage(11, 22, 0.75)
    assert Usage(1, 2) + Usage(10, 20, 0.25) == Usage(11, 22, 0.25)
    assert Usage(1, 2) + Usage(10, 20) == Usage(11, 22, None)
    assert sum([Usage(1, 1, 1.0)] * 3, Usage()) == Usage(3, 3, 3.0)
    assert Usage(1, 1, None, 5, "length") + Usage(1, 1, None, 2, "stop") == Usage(2, 2, None, 7, "stop"), "the last reply's"
    assert Usage(finish="length") + Usage() == Usage(finish="length")


def test_an_error_about_a_value_under_a_long_key_does_not_repeat_the_key() -> None:
    letter = msgpack.packb({"topology": "t", "node": "n", "headers": {"k" * 100_000: 5}})
    with pytest.raises(DecodeError) as e:
        Letter.unpack(letter)
    assert len(e.value.message) < 1000


# -- where they are stored
class _Looking(MemoryBus):
    """A connection that cannot look at the first `failing` times."""

    failing = 2

    async def get(self, stream: str, sequence: int) -> Message | None:
        self.failing -= 1
        if self.failing >= 0:
            raise Unreachable("no answer from the stream's leader")
        return await super().get(stream, sequence)


def test_the_record_of_an_earlier_answer_is_found_though_the_leader_was_away_for_a_moment() -> None:
    """Who submitted the call would wait for ever: the process that stored it has died before it could say so."""
    loop, server = VirtualLoop(), MemoryServer()
    to = RecordTo(subjects.record("lab", "light", "t", "s", 0), "id", 7, b"event")
    asked = CallRequest("call", 1, 1, "t", "n", CallSpec("predict", "a -> b", "a -> b"), {}, "run", record=to)

    async def twice() -> tuple[CallRecord | None, int]:
        await server.connect().ensure_stream(StreamConfig(subjects.stream("lab"), subjects.own_subjects("lab")))
        await RecordStore(server.connect(), "lab", "light").store(CallRecord("call", 1, 1, "t", "n", outputs={"b": 1}), asked)
        store = RecordStore(_Looking(server, BusEvents()), "lab", "light")
        found = await store.store(CallRecord("call", 1, 1, "t", "n", outputs={"b": 2}), asked)
        return found, store.lost

    found, lost = loop.run(twice(), advance=True)
    loop.close()
    assert (found.outputs if found else None, lost) == ({"b": 1}, 0)


@given(requests | records)
def test_what_is_made_at_once_is_what_the_constructor_makes_to_the_byte(made: CallRequest | CallRecord) -> None:
    said = dict(reversed(vars(made).items()))  # the order of fields, and not of arguments
    again: Any = type(made).at_once(**said)
    assert (again, again.pack()) == (made, made.pack())


@pytest.mark.parametrize("more", [{}, {"call": "c", "other": 1}], ids=["less", "more"])
def test_what_has_not_the_fields_of_a_record_is_not_made_at_once_either(more: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        CallRecord.at_once(try_number=1, attempt=1, topology="t", node="n", **more)
    whole = {"call": "c", "try_number": 1, "attempt": 1, "topology": "t", "node": "n"}
    assert CallRecord.at_once(**whole).usage is not CallRecord.at_once(**whole).usage


@given(requests)
def test_a_child_reads_what_its_parent_has_checked_as_the_parent_does(request: CallRequest) -> None:
    packed = request.pack()
    assert CallRequest.of_ours(packed) == CallRequest.unpack(packed) == request


def test_a_request_of_another_version_is_read_by_a_child_as_far_as_it_goes() -> None:
    plain = msgpack.unpackb(REQUEST.pack())
    assert CallRequest.of_ours(msgpack.packb(plain | {"news": 1})) == REQUEST
    del plain["inputs"]
    with pytest.raises(DecodeError, match="version"):
        CallRequest.of_ours(msgpack.packb(plain))


def test_an_interactive_request_says_nothing_that_is_so_in_any_case() -> None:
    said = msgpack.unpackb(dataclasses.replace(REQUEST, record=None).pack())
    assert set(said) == {"call", "try_number", "attempt", "topology", "node", "spec", "inputs", "run"}


def test_a_record_says_nothing_that_is_so_in_any_case_and_each_answer_that_is_empty() -> None:
    made = CallRecord("c", 1, 1, "", "", number=0, outputs={}, route="", usage={"requests": 0})
    said = msgpack.unpackb(made.pack())
    assert said.keys() == {"call", "try_number", "attempt", "topology", "node", "number", "outputs", "route", "usage"}
    assert CallRecord.unpack(made.pack()) == made
