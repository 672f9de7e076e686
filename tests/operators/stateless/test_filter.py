from __future__ import annotations

import pytest

from dspex.bus.errors import ExpressionError, TopologyError
from dspex.operators.stateless import filter


def test_data_that_passes_a_function_is_kept(run):
    assert run(filter.build(lambda x: x > 1), 1, 2, 3) == [2, 3]


def test_data_that_passes_an_expression_is_kept(run):
    assert run(filter.build("n >= 2"), {"n": 1}, {"n": 2}) == [{"n": 2}]


def test_an_expression_may_read_the_event(run):
    assert run(filter.build("event.key == 'k1' and event.headers['Tenant'] == 'acme'"), {}) == [{}]
    assert run(filter.build("event.session == 'other'"), {}) == []


def test_a_missing_field_is_an_error_and_not_false(run):
    with pytest.raises(ExpressionError, match="no field 'n'; it has: m"):
        run(filter.build("n >= 2"), {"m": 1})


def test_a_test_that_wants_two_arguments_is_refused(run):
    with pytest.raises(TopologyError, match="filter calls its function with \\(data\\)"):
        filter.build(lambda a, b: True)
