from __future__ import annotations

import pytest

from dspex.bus.errors import InvalidInput, TopologyError
from dspex.operators.stateless import sink


def test_a_plain_subject_is_its_own_pattern_and_needs_no_address():
    made = sink.make("support.replies", codec="json")
    assert (made.subject, made.pattern, made.address) == ("support.replies", "support.replies", None)


def test_fields_in_a_subject_make_a_wildcard_and_an_address():
    made = sink.make("replies.{intent}.to-{customer.id}", codec="json")
    assert made.pattern == "replies.*.*"
    assert made.address is not None
    assert made.address({"intent": "lost", "customer": {"id": 7}}) == "replies.lost.to-7"


UNSEEN = ["a\x00b", "\x1b[2J", "a\x07", "a\x7f", "\x9b2J", "a\u202eb", "a\u2066b", "a\u200bb", "a\ufeff", "\u2028"]


@pytest.mark.parametrize("value", ["a.b", "a b", "*", ">", "", ["a b"], *UNSEEN])
def test_a_value_that_would_change_the_subject_is_invalid(value):
    made = sink.make("replies.{intent}", codec="json")
    assert made.address is not None
    with pytest.raises(InvalidInput, match="cannot be part of a subject"):
        made.address({"intent": value})


@pytest.mark.parametrize(
    "subject", ["a b", "a..b", "a.*", "a.>", "$SYS.a", "", ".a", "a.{", "_INBOX.{a}.{b}", "_INBOX_worker.x", *UNSEEN]
)
def test_a_bad_subject_is_refused_at_build(subject):
    with pytest.raises(TopologyError) as e:
        sink.make(subject, codec="json")
    assert e.value.code in ("DX217", "DX225")
