from __future__ import annotations

import pytest

from dspex.bus.errors import TopologyError
from dspex.operators.stateless import map


def test_map_replaces_each_datum_by_what_the_function_returns(run):
    assert run(map.build(lambda x: x + 1), 1, 2) == [2, 3]


def test_a_function_of_two_arguments_gets_the_context(run):
    assert run(map.build(lambda x, ctx: (x, ctx.key, ctx.now.year)), 1) == [(1, "k1", 2026)]


def test_a_second_parameter_with_a_default_is_the_users_own(run):
    assert run(map.build(lambda x, step=10: x + step), 1) == [11]


def test_a_builtin_and_a_bound_method_can_be_mapped(run):
    assert run(map.build(str), 1) == ["1"]
    assert run(map.build("-".join), ["a", "b"]) == ["a-b"]


def test_map_passes_on_the_error_that_the_function_raises(run):
    with pytest.raises(ZeroDivisionError):
        run(map.build(lambda x: 1 / x), 0)


@pytest.mark.parametrize("fn", [lambda: 1, lambda a, b, c: 1, lambda a, *, b: 1, 5])
def test_a_function_that_cannot_be_called_with_data_is_refused_at_build(fn):
    with pytest.raises(TopologyError, match="map") as e:
        map.build(fn)
    assert e.value.code == "DX219"
