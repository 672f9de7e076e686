"""The order of a list of profiles is kept between calls, and is at each moment what looking at all of them anew would give."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from dspex.bus.errors import CircuitOpen
from dspex.bus.records import ANSWERED, CallRecord, CallRequest, Tried
from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.pool.routing.behind import FAILING, SLOWER, ListOrders
from dspex.workers.pool.routing.measured import Measured
from dspex.workers.pool.routing.routing import Routing

NAMES = ("a", "b", "c", "d")
LISTS = [NAMES, NAMES[:2], ("c", "a"), ("d", "nobody"), NAMES[::-1]]


def anew(measured: dict[str, Measured], names: Sequence[str]) -> list[str]:
    """The order of a list, looked at anew."""
    known = [(name, measured[name].error_rate, measured[name].p50) for name in names if name in measured]
    least = min((rate for _, rate, _ in known), default=0.0)
    best = min((p50 for *_, p50 in known if p50 is not None), default=math.inf)
    worse = [n for n, rate, p50 in known if (rate > FAILING and rate > 2 * least) or (p50 or 0.0) > SLOWER * best]
    return list(names) if len(worse) == len(names) else [*(n for n in names if n not in worse), *worse]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_kept_is_what_looking_anew_gives_after_each_outcome(seed: int) -> None:
    chance, measured = random.Random(seed), {name: Measured() for name in NAMES}
    behind, orders, usual = ListOrders(measured), set[tuple[str, ...]](), dict.fromkeys(NAMES, 1.0)
    for n in range(1500):
        name = chance.choice(NAMES)
        if n % 100 == 0:
            usual[name] = chance.choice((0.0, 0.3, 1.0, 1.0, 2.9, 3.1, 9.0))
        fails = chance.random() < (0.4 if seed % 3 == 0 and name == NAMES[seed % 4] else 0.03)
        measured[name].add(None if fails else usual[name] * chance.uniform(0.9, 1.1))
        behind.learned(measured[name])
        for names in LISTS:
            assert list(behind.order(names).names) == anew(measured, names), (n, names)
        orders.add(tuple(behind.order(NAMES).names))
    assert len(orders) > 1, "there was something to decide"


def test_an_order_is_kept_while_answers_take_about_as_long_as_before() -> None:
    chance, measured = random.Random(1), {name: Measured() for name in NAMES}
    behind = ListOrders(measured)
    for n in range(400):
        for name, one in measured.items():
            one.add(chance.uniform(0.8, 1.2) * (6.0 if name == "a" else 1.0))
            behind.learned(one)
        if n == 100:
            first = behind.order(NAMES)
    assert behind.order(NAMES) is first
    assert (tuple(first.names), [tried.lm for tried in first.said]) == (("b", "c", "d", "a"), ["a"])


@dataclass(eq=False)
class OnItsWay:
    """A call on its way through a pool, as the router sees it."""

    work: CallRequest
    lms: Any = None
    batch: bool = False
    routing: list[Tried] = field(default_factory=list[Tried])


class Clocked:
    """A router on a clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0
        profiles = {name: Profile(name, "openai/stand-in") for name in ("dear", "cheap", "third")}
        self.routing: Any = Routing(PoolConfig("app", "pool", profiles=profiles), lambda: self.now)

    def asked(self, *names: str) -> tuple[list[str], list[str]]:
        """Which profiles a call of a list is to ask, and which are left out; it goes on without an end."""
        work = CallRequest("c", 1, 1, "", "", CallSpec("predict", "a -> b", "a -> b", lm=names), {}, "r")
        self.call: Any = OnItsWay(work)
        self.routing.before(self.call)
        return list(self.call.lms or ()), [tried.lm for tried in self.call.routing]

    def ended(self, lm: str, why: str) -> None:
        error = None if why == ANSWERED else {"type": why}
        self.routing.after(self.call, CallRecord("c", 1, 1, "", "", lm=lm, error=error, routing=[Tried(lm, why, 10.0)]))


def test_an_open_profile_is_left_out_of_lists_until_its_time_is_over_and_others_that_open_meanwhile_are_too() -> None:
    one = Clocked()
    both, all_three = ("dear", "cheap"), ("dear", "cheap", "third")
    one.asked(*both)
    for _ in range(5):
        one.ended("dear", "LMUnavailable")
    assert [one.asked(*both), one.asked(*both)] == [(["cheap"], ["dear"])] * 2
    assert one.asked(*all_three) == (["cheap", "third"], ["dear"])
    one.now = 5.0
    for _ in range(5):
        one.ended("cheap", "LMUnavailable")
    assert one.asked(*all_three) == (["third"], ["dear", "cheap"])
    with pytest.raises(CircuitOpen):
        one.asked(*both)
    one.now = 15.0  # one call tries the first
    assert one.asked(*all_three) == (["dear", "third"], ["cheap"])
    trying = one.call
    assert one.asked(*all_three) == (["third"], ["dear", "cheap"]), "one alone tries it"
    one.call = trying
    one.ended("dear", ANSWERED)
    assert one.asked(*all_three) == (["dear", "third"], ["cheap"])
    one.now = 20.0
    assert one.asked(*all_three) == (["dear", "cheap", "third"], [])
