from __future__ import annotations

import pytest
from pydantic import BaseModel

from dspex.bus.errors import InvalidInput, TopologyError
from dspex.operators.stateless import set


class Order(BaseModel):
    price: float
    count: int
    total: float = 0


def test_set_adds_fields_and_keeps_the_others(run):
    assert run(set.build({"total": "price * count"}), {"price": 2, "count": 3}) == [{"price": 2, "count": 3, "total": 6}]


def test_every_expression_sees_the_data_as_it_came_in(run):
    assert run(set.build({"a": "b", "b": "a"}), {"a": 1, "b": 2}) == [{"a": 2, "b": 1}]


def test_set_types_its_result_by_into(run):
    assert run(set.build({"total": "price * count"}, Order), Order(price=2, count=3)) == [Order(price=2, count=3, total=6)]


def test_a_result_that_does_not_fit_into_is_invalid(run):
    with pytest.raises(InvalidInput, match="does not fit Order: count"):
        run(set.build({"count": "'many'"}, Order), {"price": 1})


def test_set_refuses_data_without_fields(run):
    with pytest.raises(InvalidInput, match="the data is int"):
        run(set.build({"a": "1"}), 5)


def test_set_reports_all_bad_expressions_at_once():
    with pytest.raises(TopologyError) as e:
        set.OPERATOR.main.check("set", {"a": "1 +", "b": "lowr(x)"})
    assert [p.code for p in e.value.problems] == ["DX208", "DX208"]
