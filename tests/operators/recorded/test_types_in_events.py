"""Types of the user's and of DSPy's through a topology: in events, in calls and in what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from dspex.operators.topology import Topology
from dspex.testing import Driver

dspy: Any = pytest.importorskip("dspy")
URL = "data:image/png;base64,iVBORw0KGgo="


class Ticket(BaseModel):
    title: str
    number: int = Field(1, alias="no")


class Look(dspy.Signature):
    """Look at it."""

    photos: list[dspy.Image] = dspy.InputField()
    ticket: Ticket = dspy.InputField()
    found: list[Ticket] = dspy.OutputField()
    best: dspy.Image = dspy.OutputField()


@pytest.fixture
def topology() -> Topology:
    t = Topology("small")
    t.source("in").predict(Look, name="look").map(number, name="number").sink("out")
    return t


def number(data: dict[str, Any]) -> dict[str, Any]:
    """It gets objects, and gives objects on."""
    return {"number": data["found"][0].number, "best": data["best"], "url": data["best"].url}


@pytest.mark.parametrize(
    "event",
    [
        {"photos": [{"url": URL}], "ticket": {"title": "t", "no": 7}},
        {"photos": [dspy.Image(URL)], "ticket": Ticket(title="t", no=7)},
    ],
    ids=["data", "objects"],
)
@pytest.mark.parametrize("best", [{"url": URL}, dspy.Image(URL)], ids=["data", "object"])
def test_images_and_models_are_data_on_the_bus_and_objects_in_functions(topology: Topology, event: Any, best: Any) -> None:
    with Driver(topology) as d:
        d.answer("look", {"found": [{"title": "f", "no": "5"}], "best": best})
        d.publish("in", event)
        assert d.outputs("out") == [{"number": 5, "best": {"url": URL}, "url": URL}]
        assert d.calls("look")[0].inputs["photos"] == [{"url": URL}]


def test_an_event_whose_data_is_no_image_is_a_dead_letter(topology: Topology) -> None:
    with Driver(topology) as d:
        d.publish("in", {"photos": ["https://example.org/a.png"], "ticket": {"title": "t"}})
        (letter,) = d.dead_letters()
    assert letter.reason == "InvalidInput"
    assert "photos.0" in letter.message


def test_yaml_names_types_of_the_users_by_ref(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("""
dspex: 1
topology: small
types: { Ticket: "tickets:Ticket" }
sources: { in: {} }
nodes: { ask: { from: in, predict: "text -> tickets: list[Ticket]" } }
sinks: { out: { from: ask } }
""")
    with Driver(Topology.load(str(file))) as d:
        d.answer("ask", {"tickets": [{"title": "t", "level": 2}]})
        d.publish("in", {"text": "x"})
        (found,) = d.outputs("out")
    assert found["tickets"] == [{"title": "t", "level": 2, "at": None, "tags": [], "colors": {}}]
