"""The testing driver refuses names that its topologies do not have: an empty answer would let a misspelt test pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dspex.bus.errors import ConfigError, NoAnswer, ProgramError, TopologyError
from dspex.engine.testing.driver import Driver, Faults
from dspex.operators.topology import Topology


def asking() -> Topology:
    topology = Topology("small")
    topology.source("in").predict("text -> label", name="ask").sink("out.{label}")
    return topology


@pytest.mark.parametrize("look", [lambda d: d.outputs("misspelt"), lambda d: d.events("ou"), lambda d: d.calls("misspelt")])
def test_a_name_that_no_topology_has_is_refused_by_the_driver(look: Any) -> None:
    with Driver(asking()) as d, pytest.raises(ConfigError, match="there is no") as caught:
        look(d)
    assert caught.value.code == "DX105"


def test_the_driver_shows_the_events_of_sinks_and_of_sources() -> None:
    with Driver(asking()) as d:
        d.answer("ask", {"label": "a"})
        d.publish("in", {"text": "hi"})
        assert [len(d.outputs(subject)) for subject in ("in", "out.a", "out.*", "out.b")] == [1, 1, 1, 0]
        assert len(d.calls("ask")) == 1


def test_the_driver_refuses_what_is_no_topology() -> None:
    with pytest.raises(TopologyError, match="3 is int, not a Topology"):
        Driver(3)  # type: ignore[arg-type]


def test_an_answer_that_no_record_can_hold_is_told_as_a_worker_tells_it() -> None:
    with Driver(asking()) as d:
        d.answer("ask", {"label": 2**70})
        d.publish("in", {"text": "hi"})
        d.advance("5m")
        (letter,) = d.dead_letters()
    assert (letter.reason, letter.message.partition(":")[0]) == ("InvalidOutput", "the answer cannot be sent")


def test_an_answer_of_a_function_that_fails_is_that_of_a_program_that_fails_and_one_that_is_no_mapping_is_told() -> None:
    with Driver(asking()) as d:
        d.answer("ask", lambda inputs: {"label": 1 / 0})
        d.publish("in", {"text": "hi"})
        d.advance("5m")
        (letter,) = d.dead_letters()
    assert (letter.reason, "division by zero" in letter.message) == ("ProgramError", True)
    with Driver(asking()) as d:
        d.answer("ask", lambda inputs: ["a"])  # type: ignore[arg-type,return-value]
        with pytest.raises(NoAnswer, match=r"the answer of ask is \['a'\]"):
            d.publish("in", {"text": "hi"})


def _unanswered() -> None:
    with Driver(asking()) as d:
        d.publish("in", {"text": "hi"})


def _unseen_letter() -> None:
    with Driver(asking()) as d:
        d.fail("ask", ProgramError("no"))
        d.publish("in", {"text": "hi"})


def _misspelt() -> None:
    with Driver(asking()) as d:
        d.outputs("misspelt")


@pytest.mark.parametrize("test", [_unanswered, _unseen_letter, _misspelt])
def test_what_pytest_shows_of_a_failure_ends_in_the_line_of_the_test(test: Any) -> None:
    with pytest.raises((NoAnswer, ConfigError, AssertionError)) as caught:
        test()
    shown = [entry for entry in caught.traceback if not entry.ishidden(caught)]
    assert {str(entry.path) for entry in shown} == {__file__}


def test_the_driver_says_which_name_was_probably_meant() -> None:
    with Driver(asking()) as d:
        for look, near in (
            (lambda: d.calls("aks"), "ask"),
            (lambda: d.outputs("inn"), "in"),
            (lambda: d.answer("asks", {}), "ask"),
        ):
            with pytest.raises(ConfigError) as caught:
                look()
            assert caught.value.fix == f"did you mean {near}?"


def driven(seed: int, faults: Faults) -> tuple[int, float, list[Any]]:
    """Engines that lived, the time of the end, and what came out, of six messages that are asked about."""
    with Driver(asking(), seed=seed, faults=faults) as d:
        d.answer("ask", lambda inputs: {"label": "a"}, after="1s")
        for n in range(6):
            d.publish("in", {"text": f"{n}"}, id=f"m{n}")
            d.advance("1s")
        d.advance("30s")
        return d._engines.lives, d._loop.time(), [d.outputs("out.a"), [c.call for c in d.calls("ask")]]


@pytest.mark.parametrize("faults", [Faults(crash=0.02), Faults(freeze=0.02), Faults(crash=0.02, freeze=0.01, unsettled=0.1)])
def test_an_engine_that_dies_or_stands_still_anywhere_loses_and_doubles_nothing(faults: Faults) -> None:
    lives, time, (outputs, calls) = driven(3, faults)
    assert lives > 5
    assert sorted(o["text"] for o in outputs) == [str(n) for n in range(6)]
    assert len(set(calls)) == 6
    assert driven(3, faults) == (lives, time, [outputs, calls])  # one seed, one schedule


def test_an_engine_that_dies_all_the_time_comes_to_an_end_in_a_time_that_a_test_can_tell() -> None:
    for seed in range(5):
        with Driver(asking(), seed=seed, faults=Faults(crash=0.3, unsettled=0.1)) as d:
            d.answer("ask", {"label": "a"})
            d.publish("in", {"text": "hi"})
            d.advance("90s")
            assert (len(d.outputs("out.a")), d._engines.lives > 5) == (1, True)


@pytest.mark.parametrize("wrong", [{"crash": 2}, {"freeze": "often"}, {"disconnect": -0.1}, {"delay": "soon"}])
def test_a_fault_that_is_no_rate_or_no_time_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Faults\(|is not a duration"):
        Faults(**wrong)


def test_the_state_of_a_key_is_what_the_function_made_of_it_also_behind_a_crash() -> None:
    topology = Topology("sums")
    counted = (
        topology.source("in").key_by("who").stateful(lambda n, data, ctx: (n + data["n"] or None, []), init=int, name="total")
    )
    counted.sink("out")
    with Driver(topology) as d:
        for who, n in (("a", 1), ("b", 2), ("a", 3), ("b", -2)):
            d.publish("in", {"who": who, "n": n})
        assert [d.state("total", key) for key in ("a", "b", "c")] == [4, None, None]
        d.crash()
        assert d.state("total", "a") == 4
        with pytest.raises(ConfigError, match="there is no node with state 'totl'") as caught:
            d.state("totl", "a")
        assert caught.value.fix == "did you mean total?"


def test_what_no_driver_can_kill_and_what_is_no_time_are_refused() -> None:
    with Driver(asking()) as d:
        with pytest.raises(ConfigError, match="crash cannot be 'engines'") as caught:
            d.crash("engines")  # type: ignore[arg-type]
        assert caught.value.fix == "one of: engine, workers, all"
        with pytest.raises(ConfigError, match="time='yesterday' is no datetime"):
            d.redrive(time="yesterday")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "code", "says"),
    [
        (lambda t: Driver(), "DX105", "there is nothing to run"),
        (lambda t: Driver(t, t), "DX201", "two topologies are called small"),
        (lambda t: Driver(t, seed="x"), "DX105", r"Driver\(seed='x'\): it is an integer"),
        (lambda t: Driver(t, faults={"crash": 0.1}), "DX105", "it is Faults"),
        (lambda t: Driver(t, bus="kafka"), "DX105", "there is no such bus"),
    ],
)
def test_what_no_driver_can_run_is_refused_before_it_begins(wrong: Any, code: str, says: str) -> None:
    with pytest.raises((ConfigError, TopologyError), match=says) as caught:
        wrong(asking())
    assert caught.value.code == code
    assert caught.value.fix


_USES: tuple[Callable[[Driver], Any], ...] = (
    lambda d: d.publish("in", {"text": "hi"}),
    lambda d: d.answer("ask", {"label": "a"}),
    lambda d: d.fail("ask", ValueError("bad")),
    lambda d: d.advance("1s"),
    lambda d: d.crash(),
    lambda d: d.outputs("in"),
    lambda d: d.calls("ask"),
    lambda d: d.approvals(),
    lambda d: d.decide("someone", "accept"),
    lambda d: d.dead_letters(),
    lambda d: d.redrive(),
)


def test_a_driver_outside_of_its_block_says_so_whatever_is_done_with_it() -> None:
    driver = Driver(asking())
    for use in _USES:
        with pytest.raises(ConfigError, match="outside of `with`") as caught:
            use(driver)
        assert "with Driver(topology) as d" in caught.value.fix
    with driver:
        pass
    for use in _USES:
        with pytest.raises(ConfigError, match="has ended"):
            use(driver)
    with pytest.raises(ConfigError, match="has begun before"), driver:
        pass
