# ruff: noqa: UP007, UP045  # the spellings are the point
"""Signatures with the user's own types and with DSPy's, and values for them: what a worker must send as plain DSPy does."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Optional, Union

import dspy
import tickets
from pydantic import Field
from tickets import (
    Address,
    Box,
    Cat,
    Color,
    Dog,
    Fish,
    Level,
    Man,
    Mood,
    Node,
    Pair,
    Pet,
    Photo,
    Point,
    Rights,
    Row,
    Span,
    Strict,
    Ticket,
)

JAVA: Any = dspy.Code["java"]  # each time another class
PNG = "data:image/png;base64,iVBORw0KGgo="
IMAGE, OTHER_IMAGE = dspy.Image(PNG), dspy.Image('https://example.org/ä b.png?x=1&y="2"')
AUDIO = dspy.Audio(data="UklGRg==", audio_format="wav")
FILE = dspy.File(file_data="data:application/pdf;base64,JVBERg==", filename="ü.pdf")
TICKET = Ticket(title='"ä"\n<b>', level=Level.HIGH, at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), colors={"x": Color.RED})
ADDRESS = Address(street="Weg 1", zipCode="12345")


@dataclass
class Case:
    """`inputs`: by name, type and value; `outputs`: by name, type and what the model says, as JSON data."""

    inputs: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    outputs: dict[str, tuple[Any, Any]] = field(default_factory=lambda: {"answer": (str, "yes")})

    def signature(self) -> Any:
        """The signature as plain DSPy has it."""
        fields: Any = {"text": (str, dspy.InputField())}
        fields |= {n: (t, dspy.InputField(desc=f"the {n}")) for n, (t, _) in self.inputs.items()}
        fields |= {n: (t, dspy.OutputField()) for n, (t, _) in self.outputs.items()}
        make: Any = dspy.Signature
        return make(fields, "Do it.")


_TICKET = {"title": "t", "level": 2}
_ADDRESS = {"street": "s", "zipCode": "1"}
ANSWERS: list[tuple[Any, Any]] = [
    (Color, "red"), (Color, "DEEP_BLUE"), (Level, "HIGH"), (Mood, "good"), (Rights, "READ"), (Optional[Color], "deep blue"),
    (list[Color], ["red"]), (dict[str, Level], {"a": "2"}), (set[Mood], ["bad"]), (Ticket, _TICKET),
    (list[Ticket], [_TICKET]), (Optional[Ticket], _TICKET), (Ticket | None, None), (dict[str, Ticket], {"a": _TICKET}),
    (tuple[Ticket, Color], [_TICKET, "red"]), (tuple[Ticket, ...], [_TICKET]), (Union[Ticket, Address], _ADDRESS),
    (Ticket | str, "no ticket"), (dict[Color, int], {"red": 1}), (Address, _ADDRESS), (list[Address], [_ADDRESS]),
    (Node, {"value": 1, "children": [{"value": 2}]}), (list[Node], [{"value": 1}]),
    (Man, {"name": "m", "dog": {"owner": {"name": "n"}}}), (Dog, {}), (Pet, {"pet": {"kind": "fish", "salty": True}}),
    (Cat | Fish, {"kind": "cat", "lives": 7}), (Strict, {"code": 7}), (Box[Ticket], {"value": _TICKET}),
    (Box[int], {"value": "3"}), (list[Box[list[Ticket]]], [{"value": [_TICKET]}]), (Point, {"x": 1}),
    (list[Point], [{"x": 1, "y": 2}]), (Pair[int], {"first": 1, "second": 2}), (Row, {"id": 1, "at": _ADDRESS}),
    (list[Row], [{"id": 1, "note": "n", "at": _ADDRESS}]), (Span, [1, 2]),
    (Optional[list[Ticket]], [_TICKET]), (dict[str, list[Node]], {"a": [{"value": 1}]}),
    (list[Optional[Ticket]], [None, _TICKET]),
    (list[dict[str, Color]], [{"a": "red"}]), (Optional[Row], None), (Pair[Ticket], {"first": _TICKET, "second": _TICKET}),
    (set[Level], [1]), (frozenset[Color], ["red"]), (list[Annotated[int, Field(gt=0)]], [3]),
    (tickets.OtherTicket, {"price": 1}),
]  # fmt: skip

SHOWN: list[tuple[Any, Any]] = [
    (Optional[Address], ADDRESS), (list[Row], [Row(id=2, note="n", at=ADDRESS)]), (dict[Color, Ticket], {Color.RED: TICKET}),
    (list[Point], [Point(1)]), (Man | None, Man(name="m")),
    (Color, Color.RED), (Optional[Level], None), (Level, Level.HIGH), (list[Mood], [Mood.BAD]), (Ticket, TICKET),
    (list[Ticket], [TICKET, TICKET]), (dict[str, Ticket], {"ä": TICKET}), (Optional[Ticket], TICKET), (Address, ADDRESS),
    (list[Address], [ADDRESS]), (Node, Node(value=1, children=[Node(value=2)])), (Man, Man(name="m", dog=Dog())),
    (Pet, Pet(pet=Cat(kind="cat", lives=1))), (Strict, Strict(code="ABC")), (Box[Ticket], Box[Ticket](value=TICKET)),
    (Point, Point(1, 2.5, ["a"])), (Pair[int], Pair(1, 2)), (Row, Row(id=1, at=ADDRESS)), (Span, Span(1, 2)),
    (tuple[Ticket, int], (TICKET, 1)), (float, 5), (int, "7"), (bool, "true"), (Optional[str], None),
    (list[float], [1, 2.5]), (datetime, datetime(2026, 1, 2, tzinfo=UTC)), (Ticket, {"title": "as a dict"}),
]  # fmt: skip

MEDIA: list[tuple[Any, Any]] = [
    (dspy.Image, IMAGE), (Optional[dspy.Image], IMAGE), (Optional[dspy.Image], None), (dspy.Image | None, OTHER_IMAGE),
    (list[dspy.Image], [IMAGE, OTHER_IMAGE]), (list[dspy.Image], []),
    (dict[str, dspy.Image], {"a": IMAGE, "ä": OTHER_IMAGE}), (Union[dspy.Image, str], "only text"),
    (Union[dspy.Image, str], IMAGE), (Union[dspy.Image, dspy.Audio], AUDIO), (list[dspy.Image | None], [None, IMAGE]),
    (dict[str, list[dspy.Image]], {"a": [IMAGE]}), (tuple[dspy.Image, str], (IMAGE, "x")),
    (tuple[dspy.Image, ...], (IMAGE, OTHER_IMAGE)), (list[list[dspy.Image]], [[IMAGE]]), (dict, {"plain": 1}),
    (dspy.Audio, AUDIO), (list[dspy.Audio], [AUDIO]), (dspy.File, FILE), (list[dspy.File], [FILE]),
    (Optional[dspy.File], FILE), (dict[str, dspy.File], {"f": FILE}), (dspy.Code, dspy.Code(code="x = 1")),
    (JAVA, JAVA(code="int x;")), (list[dspy.Code], [dspy.Code(code="y")]),
    (dspy.Reasoning, dspy.Reasoning(content="because")), (Photo, Photo(image=IMAGE, more=[OTHER_IMAGE], caption="c")),
    (list[Photo], [Photo(image=IMAGE)]), (Optional[Photo], Photo(image=OTHER_IMAGE)),
    (dict[str, Photo], {"p": Photo(image=IMAGE)}),
    (dspy.History, dspy.History(messages=[{"text": "before", "answer": "said"}])), (Union[dspy.File, dspy.Image, str], FILE),
    (dspy.ToolCalls, dspy.ToolCalls.from_dict_list([{"name": "f", "args": {"x": 1}}])),
]  # fmt: skip

CASES = {
    **{f"answer-{i}": Case(outputs={"answer": known}) for i, known in enumerate(ANSWERS)},
    **{f"shown-{i}": Case(inputs={"thing": known}) for i, known in enumerate(SHOWN)},
    **{f"media-{i}": Case(inputs={"thing": known}) for i, known in enumerate(MEDIA)},
    "two-tickets": Case(
        {"a": (Ticket, TICKET), "b": (tickets.OtherTicket, tickets.OtherTicket(price=1))},
        {"answer": (list[Ticket], [_TICKET]), "other": (Optional[tickets.OtherTicket], {"price": 2})},
    ),
    "all": Case(
        {"thing": (dict[str, list[Ticket]], {"a": [TICKET]}), "photo": (Optional[dspy.Image], IMAGE)},
        {"answer": (list[Ticket], [_TICKET]), "color": (Color, "red"), "node": (Node, {"value": 1})},
    ),
    "code": Case(outputs={"answer": (JAVA, "```java\nint x;\n```")}),
    "schema": Case({"schema": (Ticket, TICKET), "prediction": (str, "p")}, {"answer": (str, "a")}),
}
