"""Nanoseconds that a fused chain map -> filter -> branch costs for one event, beside the same written by hand.

python benchmarks/jobs/chain.py
"""

from __future__ import annotations

import timeit
from typing import Any

from dspex.operators.stateless import branch, filter, map


def ns(fn: Any, *args: Any, number: int = 200_000) -> float:
    """Best of seven."""
    return min(timeit.repeat(lambda: fn(*args), number=number, repeat=7)) / number * 1e9


def bare(data: Any, ctx: Any) -> None:
    """What the lambda and the last step cost."""


def by_hand(data: Any, ctx: Any) -> None:
    data = double(data)
    if data["n"] > 2 and data["n"] >= 4:
        bare(data, ctx)


def double(x: dict[str, Any]) -> dict[str, Any]:
    return x


def main() -> None:
    data = {"n": 5}
    base = ns(bare, data, None)
    rest = branch.build(["n >= 4"])([bare, bare])
    rest_fn = branch.build([lambda x: x["n"] >= 4])([bare, bare])
    cases = {
        "map alone (identity function)": map.build(double)([bare]),
        "filter alone, function": filter.build(lambda x: x["n"] > 2)([bare]),
        "filter alone, expression": filter.build("n > 2")([bare]),
        "map -> filter -> branch, functions": map.build(double)([filter.build(lambda x: x["n"] > 2)([rest_fn])]),
        "map -> filter -> branch, expressions": map.build(double)([filter.build("n > 2")([rest])]),
        "the same by hand": by_hand,
    }
    for name, step in cases.items():
        print(f"{name:40} {ns(step, data, None) - base:6.0f} ns")


if __name__ == "__main__":
    main()
