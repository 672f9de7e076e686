"""The lint of native functions: what reads the clock, chance, the network or the environment is a warning (DX310)."""

from __future__ import annotations

import datetime
import os
import random
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from dspex.bus.errors import Problem
from dspex.operators.stream import Stream
from dspex.operators.topology import Topology


def warned(use: Callable[[Stream[Any]], Any]) -> Problem:
    """The one problem of a topology that does this; it is a warning."""
    t = Topology("small")
    use(t.source("in")).sink("out")
    (found,) = t.check()
    assert (found.code, found.level) == ("DX310", "warning")
    return found


def now(x: Any) -> Any:
    return {**x, "at": time.time()}


def today(x: Any) -> Any:
    return {**x, "at": datetime.datetime.now()}  # as users write it


def chance(x: Any) -> Any:
    return {**x, "n": random.random()}


def environment(x: Any) -> Any:
    return {**x, "home": os.environ["HOME"]}


def new_id(x: Any) -> Any:
    return {**x, "id": str(uuid.uuid4())}


def inner(x: Any) -> Any:
    return [time.monotonic() for _ in range(2)]


def outer(x: Any) -> Any:
    return inner(x)


def reads_a_file(x: Any) -> Any:
    return open("f").read()


def imports(x: Any) -> Any:
    import socket

    return socket.gethostname()


@pytest.mark.parametrize(
    ("fn", "name", "fix"),
    [
        (now, "time.time", "ctx.now"),
        (today, "datetime.datetime.now", "ctx.now"),
        (chance, "random.random", "ctx.random"),
        (environment, "os.environ", "worker"),
        (new_id, "uuid.uuid4", "ctx.uuid()"),
        (outer, "time.monotonic", "ctx.now"),
        (reads_a_file, "open()", "worker"),
        (imports, "socket", "worker"),
    ],
)
def test_a_native_function_that_is_not_pure_is_a_warning(fn, name, fix):
    found = warned(lambda s: s.map(fn))
    assert f"{fn.__name__} uses {name}: it may run again" in found.message
    assert fix in found.fix


def test_an_impure_fallback_gives_a_warning_too():
    def fallback(data):
        return {"a": str(time.time())}

    found = warned(lambda s: s.predict("text -> a", name="p", fallback=fallback))
    assert (found.node, "fallback uses time.time" in found.message) == ("p", True)


def pure(x: Any, ctx: Any) -> Any:
    seeded = random.Random(1).random()
    at = datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=1)
    return {**x, "now": ctx.now, "id": ctx.uuid(), "n": ctx.random.random() + seeded, "path": os.path.join("a", "b"),
            "at": at, "same": uuid.uuid5(uuid.NAMESPACE_DNS, "a"), "text": time.strftime("%Y", (2026,) * 9)}  # fmt: skip


def test_a_pure_function_gives_no_warning():
    t = Topology("small")
    t.source("in").map(pure).filter(lambda m: m.text > "a").sink("out")
    assert t.check() == []
