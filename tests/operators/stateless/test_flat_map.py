from __future__ import annotations

import pytest
from pydantic import BaseModel

from dspex.bus.errors import DataError
from dspex.operators.stateless import flat_map


class Model(BaseModel):
    a: int = 1


def test_every_item_of_the_result_is_handed_on_in_order(run):
    assert run(flat_map.build(lambda x: range(x)), 3, 0, 2) == [0, 1, 2, 0, 1]


def test_the_context_is_given_to_a_function_that_asks(run):
    assert run(flat_map.build(lambda x, ctx: [ctx.session]), 1) == ["s1"]


@pytest.mark.parametrize("result", ["text", b"bytes", {"a": 1}, Model(), None, 5])
def test_a_result_that_is_one_datum_is_a_data_error(run, result):
    def give(x: object) -> object:
        return result

    with pytest.raises(DataError, match=f"give returned {type(result).__name__}") as e:
        run(flat_map.build(give), 1)
    assert not e.value.retryable


def test_nothing_is_handed_on_when_the_generator_fails_half_way(walk):
    def half(x: int):
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        walk.run(flat_map.build(half), 1)
    assert walk.out == [[]]
