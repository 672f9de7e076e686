"""Whose call is taken next: all queues get the same tokens, for each of their tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.serving.shares import LATELY, Shares


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    one = VirtualLoop()
    yield one
    one.close()


def served(loop: VirtualLoop, shares: Shares, calls: int, tenant: Callable[[int, int], str], **tokens: int) -> Counter[str]:
    """Tokens by tenant of so many calls, where calls of all three queues always wait. `tenant`: of a queue's n-th call."""

    async def serve() -> Counter[str]:
        found, taken = Counter[str](), Counter[int]()
        for _ in range(calls):
            queue = shares.first([1, 2, 3])
            name = tenant(queue, taken[queue])
            taken[queue] += 1
            shares.settle(shares.took(queue, name, [1, 2, 3]), tokens[name])
            found[name] += tokens[name]
        return found

    return loop.run(serve())


def test_each_tenant_gets_as_many_tokens_as_the_others_also_where_two_share_a_queue(loop: VirtualLoop) -> None:
    found = served(
        loop, Shares(), 2000, lambda queue, n: "a" if queue == 1 else "b" if queue == 2 else "cd"[n % 2], a=10, b=90, c=30, d=30
    )
    assert max(found.values()) / min(found.values()) < 1.1, found


def test_who_had_no_calls_for_a_while_has_no_more_than_a_share_then(loop: VirtualLoop) -> None:
    shares = Shares()

    async def alone() -> None:
        for _ in range(1000):
            shares.settle(shares.took(1, "a", [1]), 100)

    loop.run(alone())
    found = served(loop, shares, 300, lambda queue, n: "abc"[queue - 1], a=100, b=100, c=100)
    assert max(found.values()) - min(found.values()) <= 200, found


def test_calls_that_begin_together_are_charged_before_they_have_used_anything(loop: VirtualLoop) -> None:
    shares = Shares()

    async def together() -> Counter[int]:
        for tenant, tokens in ((1, 100), (2, 900)):
            shares.settle(shares.took(tenant, str(tenant)), tokens)
        taken = Counter[int]()
        for _ in range(100):
            queue = shares.first([1, 2])
            shares.took(queue, str(queue), [1, 2])
            taken[queue] += 1
        return taken

    taken = loop.run(together())
    assert 8 < taken[1] / taken[2] < 11


def test_what_is_not_answered_here_is_not_charged_and_a_tenant_that_left_a_queue_counts_no_more(loop: VirtualLoop) -> None:
    shares = Shares()

    async def go(queue: int, tenant: str, tokens: float, *, answered: bool = True) -> float:
        charge = shares.took(queue, tenant, [1, 2])
        shares.settle(charge, tokens, answered=answered)
        return charge.part

    for _ in range(10):
        loop.run(go(1, "a", 0.0, answered=False))
    assert shares.first([2, 1]) == 1
    assert loop.run(go(1, "b", 5)) == 0.5
    loop.advance(LATELY + 1)
    assert loop.run(go(1, "b", 5)) == 1.0


def test_what_failed_says_nothing_of_what_calls_usually_use(loop: VirtualLoop) -> None:
    shares = Shares()

    async def go() -> float:
        shares.settle(shares.took(1, "a"), 500)
        for _ in range(50):
            shares.settle(shares.took(1, "a"), 1, answered=False)
        return shares.took(1, "a").tokens

    assert loop.run(go()) == 500


def test_to_take_a_call_costs_no_more_where_many_tenants_have_calls(loop: VirtualLoop) -> None:
    """Whoever publishes names tenants, as many as they like."""
    looked = 0

    class Name(str):
        def __hash__(self) -> int:
            nonlocal looked
            looked += 1
            return super().__hash__()

    async def go(number: int) -> int:
        nonlocal looked
        looked, shares = 0, Shares()
        for name in [Name(n) for n in range(number)]:
            shares.settle(shares.took(1, name), 100)
        return looked

    assert loop.run(go(2000)) < 25 * loop.run(go(100))
