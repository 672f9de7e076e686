"""Calls whose workers die: the neighbours of the one that kills them are run again, and do not pay for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_lab import Lab

from dspex.bus.errors import WorkerLost
from dspex.bus.records import CallRequest
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def test_from_the_third_execution_on_a_call_is_asked_to_run_alone_and_only_deaths_alone_count(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", retry={"attempts": 2, "backoff": "1s"}).sink("out")
    one = lab(topology)

    def answer(inputs: dict[str, Any], request: CallRequest) -> Any:
        if inputs["text"] == "poison" or not request.alone:
            raise WorkerLost("its process ended")
        return {"answer": "yes"}

    one.answers["ask"] = answer
    one.start()
    one.work()
    for text in ("poison", "innocent"):
        one.publish("in", {"text": text})
    one.advance(60)
    assert [o["text"] for o in one.outputs("out")] == ["innocent"]
    assert [letter.event.data["text"] for letter in one.letters()] == ["poison"]
    said = {text: [r.alone for r in one.asked if r.inputs["text"] == text] for text in ("poison", "innocent")}
    assert said == {"poison": [False, False, True, True], "innocent": [False, False, True]}
