from __future__ import annotations

from dspex.operators.stateless import branch


def test_the_first_test_that_passes_takes_the_data_and_the_last_outlet_the_rest(run):
    build = branch.build([lambda x: x > 8, "it > 4", lambda x: x > 2])
    assert run(build, 9, 5, 3, 1, outlets=4) == [[9], [5], [3], [1]]


def test_one_test_gives_match_and_rest(run):
    assert run(branch.build(["n > 1"]), {"n": 2}, {"n": 1}, outlets=2) == [[{"n": 2}], [{"n": 1}]]


def test_a_test_may_read_the_event(run):
    assert run(branch.build(["event.key == 'k1'"]), 1, outlets=2) == [[1], []]
    assert run(branch.build([lambda x: False, "event.key == 'k1'"]), 1, outlets=3) == [[], [1], []]
