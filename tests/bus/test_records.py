"""The wire forms: whole on the other side, and open to older and newer versions."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex.bus.errors import CallTimeout, DecodeError, InvalidInput, from_dict
from dspex.bus.records import CallRecord, CallSpec, Letter, Origin, Usage, Work

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
maps = st.dictionaries(
    texts, st.none() | st.integers(-(2**63), 2**64 - 1) | texts | st.binary(max_size=20) | st.floats(allow_nan=False)
)
works = st.builds(
    Work,
    call=texts,
    ordinal=st.integers(-1, 2**53),
    attempt=st.integers(1, 100),
    topology=texts,
    node=texts,
    reply=texts,
    spec=maps,
    inputs=maps,
    data=st.binary(),
    origin=maps,
    deadline=st.floats(0, 1e10),
)
WORK = Work("c", 3, 1, "t", "n", "r", {}, {"text": "hello"}, b'{"a": 1}')


@given(works)
def test_work_survives_packing_inside_its_record(work: Work) -> None:
    record = CallRecord(work.call, work.ordinal, work.attempt, work.node, work=work.pack(), outputs={"x": [1, None, b"y"]})
    again = CallRecord.unpack(record.pack())
    assert again == record
    assert Work.unpack(again.work) == work


def test_a_dead_letter_survives_packing() -> None:
    letter = Letter("t", "n", {"id": "i"}, b"\xff", "application/json", CallTimeout("slow").as_dict(), headers={"X": "ä"})
    again = Letter.unpack(letter.pack())
    assert again == letter
    assert isinstance(from_dict(again.error), CallTimeout)


@pytest.mark.parametrize("cls", [Work, CallRecord, Letter])
def test_a_field_of_a_newer_version_is_ignored_and_a_missing_one_has_its_default(cls: Any) -> None:
    needed = {f.name: "x" for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    again = cls.unpack(msgpack.packb({**needed, "invented_later": 1}))
    assert again == cls(**needed)


@pytest.mark.parametrize("cls", [Work, CallRecord, Letter])
@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xc1", msgpack.packb({}), msgpack.packb([1, 2]), msgpack.packb("call"), msgpack.packb(7)]
)
def test_bytes_that_hold_no_record_of_dspex_are_a_decode_error(cls: Any, data: bytes) -> None:
    with pytest.raises(DecodeError):
        cls.unpack(data)


def test_values_in_a_record_are_converted_as_those_in_an_event() -> None:
    work = dataclasses.replace(
        WORK,
        spec=dataclasses.asdict(CallSpec("predict", "a -> b", "a -> b", lm=("main", "big"))),
        inputs={"at": datetime(2026, 5, 4, tzinfo=UTC), "by_rank": {1: "a"}},
        origin=Origin("i", "s", "r", time=1.5)._asdict(),
    )
    again = Work.unpack(work.pack())
    assert again.inputs == {"at": "2026-05-04T00:00:00+00:00", "by_rank": {1: "a"}}
    assert again.spec == {**work.spec, "lm": ["main", "big"], "tools": []}
    assert Origin(**again.origin) == Origin("i", "s", "r", time=1.5)


def test_what_cannot_be_sent_is_refused_and_never_turned_into_its_description() -> None:
    with pytest.raises(InvalidInput, match=r"data\.inputs\.x is a object"):
        dataclasses.replace(WORK, inputs={"x": object()}).pack()


def test_usage_adds_up_and_an_unknown_price_does_not_hide_a_known_one() -> None:
    assert Usage(1, 2, 0.5) + Usage(10, 20, 0.25) == Usage(11, 22, 0.75)
    assert Usage(1, 2) + Usage(10, 20, 0.25) == Usage(11, 22, 0.25)
    assert Usage(1, 2) + Usage(10, 20) == Usage(11, 22, None)
    assert sum([Usage(1, 1, 1.0)] * 3, Usage()) == Usage(3, 3, 3.0)
