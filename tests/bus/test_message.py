"""Events and their ids: the same walk gives the same ids, and an id comes from a place, never from a publisher."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex.bus import subjects
from dspex.bus.message import (
    Event,
    Message,
    derived_id,
    event_id,
    event_time,
    id_time,
    new_id,
    partition_of,
    place_id,
    run_of,
    to_event,
)

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
texts = st.text(max_size=60)


def message(headers: dict[str, str] | None = None, sequence: int = 7) -> Message:
    return Message("a.b", b"{}", headers or {}, sequence, NOON.timestamp())


# -- ids -------------------------------------------------------------------------------------------------------------
@given(st.floats(0, 200_000_000_000))
def test_a_new_id_is_a_uuid7_of_its_time(now: float) -> None:
    id = new_id(now)
    assert (UUID(id).version, UUID(id).variant) == (7, "specified in RFC 4122")
    assert str(UUID(id)) == id
    at = id_time(id)
    assert at is not None
    assert abs(at.timestamp() - now) < 0.002


def test_new_ids_differ_and_sort_by_time() -> None:
    assert len({new_id(5.0) for _ in range(1000)}) == 1000
    ids = [new_id(n) for n in range(1000)]
    assert ids == sorted(ids)
    at = id_time(new_id())
    assert at is not None
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)


@given(st.floats(0, 200_000_000_000), texts, st.integers(0))
def test_a_derived_id_is_a_uuid_and_always_the_same(now: float, operator: str, ordinal: int) -> None:
    parent = new_id(now)
    id = derived_id(parent, operator, ordinal)
    assert str(UUID(id)) == id
    assert (UUID(id).version, UUID(id).variant) == (7, "specified in RFC 4122")
    assert derived_id(parent, operator, ordinal) == id


def test_a_derived_id_has_its_parents_time() -> None:
    parent = new_id(NOON.timestamp())
    child = derived_id(derived_id(parent, "a", 0), "b", 1)
    assert UUID(child).version == 7
    assert id_time(child) == NOON
    assert child[:13] == parent[:13]


def test_a_derived_id_depends_on_parent_operator_and_ordinal() -> None:
    ids = {derived_id(p, o, n) for p in (new_id(0), new_id(0)) for o in ("a", "b") for n in range(50)}
    assert len(ids) == 200


@given(texts, texts, st.integers(0), st.integers(0))
def test_two_operators_derive_the_same_id_only_where_name_and_ordinal_are_the_same(a: str, b: str, m: int, n: int) -> None:
    parent = new_id(0)
    assert (derived_id(parent, a, m) == derived_id(parent, b, n)) == ((a, m) == (b, n))


places = st.tuples(st.text("AB/1.", min_size=1, max_size=4), st.sampled_from([0.0, 1.0, 1.5, 15.0]), st.integers(1, 2**63))


@given(places, places)
def test_two_places_have_the_same_id_only_where_they_are_the_same(a: tuple[str, float, int], b: tuple[str, float, int]) -> None:
    ids = [place_id(stream, created, message(sequence=sequence)) for stream, created, sequence in (a, b)]
    assert (ids[0] == ids[1]) == (a == b)
    assert all(str(UUID(id)) == id and UUID(id).version == 7 and id_time(id) == NOON for id in ids)


@given(st.dictionaries(texts, texts), texts, st.binary(max_size=20))
def test_the_id_of_a_place_does_not_depend_on_what_lies_there(headers: dict[str, str], subject: str, data: bytes) -> None:
    other = message()._replace(headers=headers, subject=subject, data=data)
    assert place_id("S", 1.5, other) == place_id("S", 1.5, message())


def test_the_ids_of_places_sort_by_stored_time_whatever_their_sequences_and_streams_are() -> None:
    found = [
        place_id("S" if n % 2 else "T", float(n % 3), message(sequence=1000 - n)._replace(time=NOON.timestamp() + n / 100))
        for n in range(200)
    ]
    assert found == sorted(found)


@given(texts)
def test_the_time_of_any_text_is_a_time_or_none(id: str) -> None:
    assert id_time(id) is None


@pytest.mark.parametrize(
    "id",
    [
        "zzzzzzzz-zzzz-7zzz-8zzz-zzzzzzzzzzzz",
        "ffffffff-ffff-7fff-bfff-ffffffffffff",  # the year 10889
        "0189000000007000800000000000000",
        "01890000-0000-4000-8000-000000000000",
    ],
)
def test_an_id_without_a_usable_time_has_none(id: str) -> None:
    assert id_time(id) is None


# -- a stored message as an event ------------------------------------------------------------------------------------
def test_an_event_has_the_id_that_dspex_gave_it_else_that_of_its_place_and_never_the_publishers() -> None:
    theirs = {subjects.MESSAGE_ID: "order-17"}
    place = place_id("S", 3.0, message())
    assert event_id("S", 3.0, message({subjects.EVENT_ID: "ours", **theirs})) == "ours"
    assert event_id("S", 3.0, message(theirs)) == event_id("S", 3.0, message()) == place
    assert run_of("S", 3.0, message({subjects.RUN: "root", **theirs})) == "root"
    assert run_of("S", 3.0, message(theirs)) == place


def test_one_business_id_in_two_streams_or_twice_in_one_starts_a_run_each_time() -> None:
    again = message({subjects.MESSAGE_ID: "order-17"}, sequence=8)
    first = again._replace(sequence=7)
    assert len({run_of("S", 1.0, first), run_of("S", 1.0, again), run_of("T", 1.0, first), run_of("S", 2.0, first)}) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-04T11:00:00Z", NOON.replace(hour=11)),
        ("2026-05-04T11:00:00+02:00", NOON.replace(hour=9)),
        ("2026-05-04T11:00:00.25", NOON.replace(hour=11, microsecond=250_000)),
        ("2026-05-04", NOON.replace(hour=0)),
        ("", NOON),
        ("yesterday", NOON),
        ("2026-13-04T11:00:00Z", NOON),
        ("0001-01-01T00:00:00+14:00", NOON),  # before the first time that UTC has
    ],
)
def test_event_time_is_what_the_publisher_says_in_utc_else_the_stored_time(text: str, expected: datetime) -> None:
    at = event_time(message({subjects.TIME: text}))
    assert at == expected
    assert at.utcoffset() == timedelta(0)


def test_a_source_event_starts_its_own_run() -> None:
    stored = message({subjects.MESSAGE_ID: "theirs", "X": "y"})
    id = place_id("S", 1.5, stored)
    event = to_event(stored, {"a": 1}, "S", 1.5)
    assert event == Event(id, "a.b", {"a": 1}, NOON, id, headers={"Nats-Msg-Id": "theirs", "X": "y"}, sequence=7)


def test_a_derived_event_knows_run_cause_key_and_session() -> None:
    headers = {
        subjects.EVENT_ID: "child",
        subjects.RUN: "root",
        subjects.CAUSE: "parent",
        subjects.KEY: "k",
        subjects.SESSION: "s",
    }
    event = to_event(message(headers, sequence=0), None)
    assert (event.id, event.run, event.cause, event.key, event.session) == ("child", "root", "parent", "k", "s")
    assert event.sequence is None
    assert list(event.as_dict()) == [f.name for f in dataclasses.fields(Event)]


# -- partitions ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("key", "value"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_the_partition_of_a_key_is_its_fnv1a_hash(key: str, value: int) -> None:
    """The published test vectors; the server's `partition()` uses the same."""
    for count in (1, 3, 64, 1 << 32):
        assert partition_of(key, count) == value % count


@given(texts, st.integers(1, 1000))
def test_a_key_always_has_the_same_partition(key: str, count: int) -> None:
    assert 0 <= partition_of(key, count) < count
    assert partition_of(key, count) == partition_of(key, count)
