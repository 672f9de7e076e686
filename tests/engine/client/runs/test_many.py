"""Histories of many runs are read in one pass, and each is what it is by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex.bus.errors import ProgramError, RunNotFound
from dspex.bus.message import new_id
from dspex.engine.client.following.many import histories
from dspex.engine.client.runs.history import History, history
from dspex.engine.graph.nodes import Retry
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def topology() -> Topology:
    t = Topology("t")
    asked = t.source("in").flat_map(lambda d: [{"word": w} for w in d["text"].split()], name="each")
    asked = asked.predict("word -> label", name="ask", retry=Retry(attempts=2, backoff="3s"))
    asked.sink("out")
    asked.key_by("label").throttle("1/s", name="slowly").sink("slow")
    return t


@pytest.fixture
def one(lab: MakeLab) -> Lab:
    next = Topology("next")
    next.source("out").map(lambda d: d, name="same").sink("end")
    found, fails = lab(topology(), next), [True]

    def answer(inputs: Any, work: Any) -> Any:
        if inputs["word"] == "x" or (inputs["word"] == "b" and fails and fails.pop()):
            raise ProgramError("no")
        return {"label": str(inputs["word"]).upper()}

    found.answers["ask"] = answer
    found.start()
    return found


def both(one: Lab, runs: list[str]) -> tuple[dict[str, History], dict[str, History]]:
    applied = one.run(one.client.manifests())

    async def by_itself() -> dict[str, History]:
        return {run: await history(one.client.bus, APP, applied, run) for run in runs}

    return one.run(histories(one.client.bus, APP, applied, runs)), one.run(by_itself())


def test_runs_side_by_side_have_the_histories_that_they_have_by_themselves(one: Lab) -> None:
    one.work()
    runs = list[str]()
    for pause, text in zip((0.0, 0.2, 0.0, 30.0, 0.1), ("a b", "a a a", "x", "c", "b x a")):
        one.advance(pause)
        runs.append(one.publish("in", {"text": text}))
    one.advance(60)
    together, apart = both(one, runs)
    assert list(together) == runs
    assert together == apart
    assert all(past.done and len(past.taken) > 1 for past in together.values())


def test_a_run_that_is_open_and_one_with_letters_that_were_redriven_are_read_as_they_are(one: Lab) -> None:
    one.work()
    failed = one.publish("in", {"text": "x a"})
    one.advance(30)
    one.answers["ask"] = lambda inputs, work: {"label": "NOW"}
    one.run(one.client.redrive(one.letters()))
    one.advance(5)
    one.kill_workers()
    runs = [failed, one.publish("in", {"text": "a"}), one.publish("in", {"text": ""})]
    one.advance(1)
    together, apart = both(one, runs)
    assert together == apart
    assert [past.done for past in together.values()] == [True, False, True]


def test_what_is_no_run_ends_it(one: Lab) -> None:
    applied = one.run(one.client.manifests())
    for unknown in ("no", new_id()):
        with pytest.raises(RunNotFound):
            one.run(histories(one.client.bus, APP, applied, [unknown]))
