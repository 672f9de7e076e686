"""An answer that does not fit the signature is asked for once more; a dead worker does not use that up."""

from __future__ import annotations

import dspex
from dspex import testing
from dspex.bus.errors import DspexError, InvalidOutput, WorkerLost


def ends(*failures: DspexError) -> tuple[list[str], int]:
    """Outputs and dead letters of an event whose call fails like this, and then succeeds."""
    topology = dspex.Topology("picky")
    topology.source("in.picky").predict("text -> label: str", name="label").sink("out.picky")
    with testing.Driver(topology) as d:
        for failure in failures:
            d.fail("label", failure)
        d.answer("label", {"label": "good"})
        d.publish("in.picky", {"text": "hello"})
        d.advance("1m")
        return [o["label"] for o in d.outputs("out.picky")], len(d.dead_letters())


def test_an_invalid_output_is_asked_for_once_more() -> None:
    assert ends(InvalidOutput("nonsense")) == (["good"], 0)
    assert ends(InvalidOutput("nonsense"), InvalidOutput("nonsense")) == ([], 1)


def test_a_worker_that_dies_does_not_use_up_the_second_try_at_an_invalid_output() -> None:
    assert ends(WorkerLost("killed"), InvalidOutput("nonsense")) == (["good"], 0)
    assert ends(InvalidOutput("nonsense"), WorkerLost("killed")) == (["good"], 0)
    assert ends(InvalidOutput("nonsense"), WorkerLost("killed"), InvalidOutput("nonsense")) == ([], 1)
