"""Rules about the tests themselves: they wait for events, assert what they promise, and are named by it."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_cover  # it runs none of our code
HERE = Path(__file__).parents[1]
FILES = {f.relative_to(HERE).as_posix(): f for f in sorted(HERE.rglob("*.py"))}

# Who sleeps stands here with its reason.
SLEEPS = {
    "bus/memory/test_memory.py": "virtual time",
    "bus/memory/test_order.py": "virtual time",
    "bus/memory/test_virtual.py": "virtual time",
    "bus/test_server_clock.py": "virtual time",
    "chaos/processes/soaking.py": "a long run at an even pace",
    "chaos/processes/processes.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/process.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/replaying.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/calls/__init__.py": "scripts/chaos: looks whether all calls have ended",
    "chaos/processes/calls/agents.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/calls/optimizing.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/calls/required.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/calls/batched.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/calls/spending.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/calls/submitting.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/publisher.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/servers.py": "scripts/chaos: real faults at random moments",
    "chaos/processes/sources.py": "scripts/chaos: real faults at random moments",
    "chaos/run.py": "scripts/chaos: real faults at random moments",
    "chaos/simulated/bus.py": "virtual time",
    "chaos/simulated/outsiders.py": "virtual time",
    "chaos/simulated/publisher.py": "virtual time",
    "chaos/simulated/source.py": "virtual time",
    "chaos/simulation.py": "virtual time",
    "chaos/talking.py": "scripts/chaos: real faults at random moments",
    "chaos/timed_simulation.py": "virtual time",
    "chaos/processes/world.py": "scripts/chaos: real faults at random moments",
    "engine/keyed/lanes/test_meeting.py": "virtual time",
    "engine/keyed/lanes/test_rebuilt.py": "virtual time",
    "engine/keyed/test_alignment.py": "virtual time",
    "engine/client/runs/test_runs.py": "virtual time",
    "engine/hosting/test_membership.py": "virtual time",
    "engine/hosting/test_owning.py": "virtual time",
    "engine/hosting/test_watchdog.py": "virtual time",
    "engine/log/recovering/test_claims.py": "virtual time",
    "engine/keyed/windows/test_event_time.py": "virtual time",
    "engine/log/test_log.py": "virtual time",
    "engine/runtime/test_pump.py": "virtual time",
    "workers/limits/limits_world.py": "virtual time",
    "workers/pool/test_large_calls.py": "virtual time",
    "workers/limits/test_budgets.py": "virtual time",
    "workers/limits/test_limits.py": "virtual time",
    "workers/limits/test_long_calls.py": "virtual time",
    "support/broken/wire_cutter.py": "the round trip of a slow wire",
    "support/engine_lab.py": "virtual time",
    "engine/client/calls/test_full.py": "virtual time",
    "engine/client/calls/test_lost.py": "virtual time",
    "workers/routing/test_hedge.py": "virtual time",
    "bus/memory/test_buckets_in_doubt.py": "virtual time",
    "support/pool_bench.py": "virtual time",
    "support/programs/sample.py": "the programs of a user, who sleeps as long as he likes",
    "support/standin.py": "the model's latency",
    "support/waiting.py": "the one place that looks again and again for what no event tells",
}


Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


@cache
def functions(name: str) -> list[Function]:
    """Those of the file and of its classes."""
    return [f for n in tree(name).body for f in (n.body if isinstance(n, ast.ClassDef) else [n]) if isinstance(f, Function)]


def called(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The last name of everything that is called below the node."""
    for n in ast.walk(node):
        if isinstance(n, ast.Call):
            yield getattr(n.func, "attr", "") or getattr(n.func, "id", ""), n


def test_tests_wait_for_events_and_do_not_sleep() -> None:
    """`sleep(0)` gives way to what is ready, and is no waiting."""

    def waits(name: str) -> list[int]:
        if "sleep(" not in FILES[name].read_text():
            return []
        return [c.lineno for f, c in called(tree(name)) if f == "sleep" and [ast.unparse(a) for a in c.args] != ["0"]]

    assert {name for name in FILES if waits(name)} == set(SLEEPS)


def test_every_test_asserts_something() -> None:
    """By itself, or by a helper that is in the same file or is named for it."""

    def asserts(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Assert) for n in ast.walk(node)) or any(
            name in ("raises", "until") or name.startswith(("assert", "expect", "check")) for name, _ in called(node)
        )

    for file in FILES:
        helpers = {f.name for f in functions(file) if asserts(f)}
        silent = {f.name for f in functions(file) if f.name.startswith("test_") and f.name not in helpers}
        assert [f.name for f in functions(file) if f.name in silent and not helpers & {c for c, _ in called(f)}] == [], file


def test_no_two_tests_have_the_same_name() -> None:
    names = Counter(f.name for file in FILES for f in functions(file) if f.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []
