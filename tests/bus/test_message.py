"""Events and their ids: the same walk gives the same ids, and any id from outside will do."""

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
    event_time,
    foreign_id,
    id_time,
    message_id,
    new_id,
    partition_of,
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


@given(texts, texts, st.integers(0))
def test_a_derived_id_is_a_uuid_and_always_the_same(parent: str, operator: str, ordinal: int) -> None:
    id = derived_id(parent, operator, ordinal)
    assert str(UUID(id)) == id
    assert derived_id(parent, operator, ordinal) == id


def test_a_derived_id_has_its_parents_time() -> None:
    parent = new_id(NOON.timestamp())
    child = derived_id(derived_id(parent, "a", 0), "b", 1)
    assert UUID(child).version == 7
    assert id_time(child) == NOON
    assert child[:13] == parent[:13]


@pytest.mark.parametrize("parent", ["order-17", "", "x" * 200, "ä ö", "00000000-0000-4000-8000-000000000000"])
def test_an_id_derived_from_a_foreign_id_has_no_time(parent: str) -> None:
    child = derived_id(parent, "a", 0)
    assert UUID(child).version == 8
    assert UUID(child).variant == "specified in RFC 4122"
    assert id_time(child) is None
    assert len({derived_id(parent + end, "a", 0) for end in "abc"}) == 3


def test_a_derived_id_depends_on_parent_operator_and_ordinal() -> None:
    for parent in (new_id(0), "order-17"):
        ids = {derived_id(p, o, n) for p in (parent, new_id(0)) for o in ("a", "b") for n in range(50)}
        assert len(ids) == 200


def test_the_id_of_an_event_without_one_depends_on_where_it_is_stored() -> None:
    id = foreign_id(1.5, message())
    assert foreign_id(1.5, message()) == id
    assert id_time(id) == NOON
    others = {
        foreign_id(2.5, message()),
        foreign_id(1.5, message(sequence=8)),
        foreign_id(1.5, message()._replace(subject="x")),
    }
    assert len(others | {id}) == 4


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
def test_an_event_id_is_read_from_our_header_else_the_publishers_else_made_from_its_place() -> None:
    assert message_id(message({subjects.EVENT_ID: "ours", subjects.MESSAGE_ID: "theirs"})) == "ours"
    assert message_id(message({subjects.MESSAGE_ID: "theirs"})) == "theirs"
    assert message_id(message(), 3.0) == foreign_id(3.0, message())


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
    event = to_event(message({subjects.MESSAGE_ID: "theirs", "X": "y"}), {"a": 1})
    assert event == Event("theirs", "a.b", {"a": 1}, NOON, "theirs", headers={"Nats-Msg-Id": "theirs", "X": "y"}, sequence=7)


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
