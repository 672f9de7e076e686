"""What is asked of a real pool when a run is done again: turns with the history of then, and calls of other runs of a fork."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cli_bench import Project, stand_in
from standin import StandIn

import dspex
import dspex.sync
from dspex import Settings
from dspex.bus.errors import RecordingIncomplete

SETTINGS = """
topologies = ["pairs:topology"]
engine.submit = true
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
pools.lightweight = {{ size = 2 }}
"""
PAIRS = """
from dspex import Topology

topology = Topology("pairs")
two = topology.source("UNIQUE.in").filter("n < 50", name="small").batch(2, within="1h", name="two")
said = two.map(lambda of: {"text": " and ".join(str(one["n"]) for one in of)}, name="said")
said.predict("text -> reply", name="ask").sink("UNIQUE.out")
"""
CHAT = dspex.predict("history: dspy.History, text -> reply", deadline="5m")


@pytest.fixture(scope="module")
def model() -> StandIn:
    return StandIn()


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory, nats_url: str, model: StandIn) -> Iterator[Project]:
    """A project whose topology, pool and submitted calls run."""
    with stand_in(model) as url:
        made = Project(tmp_path_factory.mktemp("again"), f"y{os.urandom(5).hex()}", SETTINGS.format(url=url), NATS_URL=nats_url)
        made.write("pairs.py", PAIRS.replace("UNIQUE", made.u))
        with made.start("--json", "run") as run:
            run.until('"ready"')
            yield made
            assert run.end() == 0, run.errors()


def test_a_submitted_turn_is_asked_anew_with_the_history_of_then_and_is_no_turn(talking: Project, model: StandIn) -> None:
    with dspex.sync.connect(settings=Settings.load(talking.folder / "dspex.toml", server__url=talking.env["NATS_URL"])) as c:
        runs = [c.submit(CHAT, {"text": text}, session="ann") for text in ("one", "two", "three")]
        replies = [run.result("60s").data["reply"] for run in runs]
        second = c.run(runs[1].info().id)
        (then,) = [step for step in second.steps() if step.exchanges]
        before = model.stats()["requests"]
        found = c.replay(second.id, mode="live")
        assert (found.live, model.stats()["requests"]) == (1, before + 1)
        assert found.same, str(found)  # the stand-in answers by the text
        assert (len(then.exchanges), replies[1]) == (1, "reply of two")
        session = c.session("ann")
        assert [turn.inputs["text"] for turn in session.history()] == ["one", "two", "three"]
        session.end()
        with pytest.raises(RecordingIncomplete, match="the session does not have that turn any more"):
            c.replay(second.id, mode="live")


def test_a_fork_has_calls_of_other_runs_made_by_a_real_pool_as_many_as_it_says(talking: Project, model: StandIn) -> None:
    first = talking.here("--json", "publish", talking.input, "n:=1").objects()[0]["run"]
    large = talking.here("--json", "publish", talking.input, "n:=70").objects()[0]["run"]
    talking.here("--json", "publish", talking.input, "n:=2")
    (out,) = talking.here("--json", "watch", f"{talking.u}.out", "--start", "all", "--count", "1").objects()
    assert out["data"]["reply"] == "reply of 1 and 2"
    before = model.stats()["requests"]
    (made,) = talking.here("--json", "fork", first, "--at", "two", "--input", "n:=5").objects()
    assert [(one["step"], one["b"]) for one in made["later"]["diffs"] if one["field"] == "reply"] == [
        (f"{talking.u}.out", "reply of 5 and 2")
    ]
    assert (made["called"], model.stats()["requests"]) == (1, before + 1)
    (strict,) = talking.here("--json", "fork", first, "--at", "two", "--input", "n:=6", "--mode", "strict").objects()
    assert (strict["called"], model.stats()["requests"]) == (0, before + 1)
    (new,) = talking.here("--json", "fork", large, "--at", "small", "--input", "n:=7").objects()
    assert (new["called"], model.stats()["requests"]) == (1, before + 2)
    sent = [one["b"] for one in new["later"]["diffs"] if one["step"] == f"{talking.u}.out"]
    assert "reply of 1 and 7" in str(sent), new["later"]
