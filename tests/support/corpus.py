"""The signatures, data and examples of the golden files. It imports neither dspy nor dspex: every version reads it."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict


class Color(enum.Enum):
    RED = "rot"
    BLUE = "blau"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Address(BaseModel):
    street: str = Field(description="with the number")
    zip_code: int = Field(alias="zip", default=0)

    model_config = ConfigDict(populate_by_name=True)


class Person(BaseModel):
    """Somebody."""

    name: str
    tags: list[str] = []
    address: Address | None = None
    born: datetime.date | None = None


class Node(BaseModel):
    value: int
    children: list[Node] = []


@dataclass
class Point:
    x: float
    y: float = 0.0


class Movie(TypedDict):
    title: str
    year: int


class Stubborn(list):  # type: ignore[type-arg]
    """pydantic knows no schema for a subclass of list."""


class Odd:
    def __str__(self) -> str:
        return "odd & <old>"

    __repr__ = __str__  # without an address in it


class In(BaseModel):
    text: str = Field(description="what the customer wrote")
    hint: str | None = Field(description="${hint}", max_length=9)
    tags: list[str] | None = Field(description="two\nlines")


class Out(BaseModel):
    answer: str = Field(description="short, in “English”")
    color: Color = Field(description="of <it>")
    score: int | float = Field(description=" spaces ")
    stars: int = Field(description="", ge=1, lt=6)
    either: list[int | str] | dict[str, int] | None = Field(description="")


TYPES: dict[str, Any] = {t.__name__: t for t in (Color, Level, Address, Person, Node, Point, Movie, decimal.Decimal, uuid.UUID)}
DAY = datetime.date(2026, 1, 2)
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=datetime.UTC)
ADA = Person(name="Ada", tags=["a", "ü"], address=Address(street="Main <1>", zip_code=9), born=DAY)
HARD = "\u2028 «x» \x00 <b>&amp;</b> [[ ## answer ## ]] {q} \\ \" ' \t😀\r\n end "
QA = "question, context: list[str] -> answer, score: float"
QA_DEMO = {"question": "Who?", "context": ["one", "two"], "answer": "Ada", "score": 0.5}


@dataclass
class Case:
    """`signature`: text, or a pair of models whose fields have descriptions. `types`: names in the text (with instructions)."""

    signature: str | tuple[type[BaseModel], type[BaseModel]]
    data: dict[str, Any]
    demos: list[dict[str, Any]] = field(default_factory=list)
    instructions: str = ""
    types: tuple[str, ...] = ()


def _value(value: Any) -> Case:
    """A value in three places: in an input of any type, in an input of text, and in the answers of an example."""
    return Case("a: Any, b: str -> c: Any, d: str", {"a": value, "b": value}, [{"a": 1, "b": "x", "c": value, "d": value}])


CASES: dict[str, Case] = {
    "one to one": Case("question -> answer", {"question": "What?"}),
    "four fields": Case(QA, {"question": "Who?", "context": ["one", "two"]}),
    "instructions": Case("q -> a", {"q": "x"}, instructions="  Be brief.\n    Then:\n      - stop\n\n\tnow \n"),
    "instructions of space": Case("q -> a", {"q": "x"}, instructions=" \n "),
    "input missing": Case(QA, {"question": "Who?"}),
    "no data": Case(QA, {}),
    "no inputs": Case("-> a", {}, [{"a": "x"}]),
    "extra data": Case("q -> a", {"q": "x", "z": 1, "a": "leaked"}),
    "order of data": Case(QA, {"context": ["one"], "question": "Who?"}),
    "none": Case("q: Optional[str] -> a: Optional[str]", {"q": None}, [{"q": "x", "a": None}]),
    "hard text": Case("q -> a", {"q": HARD}, [{"q": HARD, "a": HARD}]),
    "space around": Case("q, r -> a, b", {"q": "  x ", "r": " y \n"}, [{"q": " x ", "r": " \n", "a": " x", "b": "\ty \n"}]),
    "empty text": Case("q -> a", {"q": ""}, [{"q": "", "a": ""}]),
    "demo": Case(QA, {"question": "x"}, [QA_DEMO]),
    "demos in order": Case(QA, {"question": "x"}, [QA_DEMO | {"score": None}, QA_DEMO, {"question": "y", "answer": "z"}]),
    "demos that tell nothing": Case(
        QA, {}, [{"question": "x"}, {"answer": "y"}, {}, {"z": 1}, {"question": None, "score": None}]
    ),
    "demo of the wrong type": Case(QA, {}, [{"question": 5, "context": "text", "answer": ["a", "b\nc"], "score": "high"}]),
    "unicode names": Case("问题 -> réponse: int", {"问题": "é"}, [{"问题": "ü", "réponse": 1}]),
    "basic types": Case("a: int, b: float, c: bool -> d: int, e: float, f: bool", {"a": 1, "b": 2.5, "c": True}),
    "literals": Case("""a -> b: Literal['x', "it's", 'say "hi"', ''], c: Literal[1, True, None]""", {"a": "x"}),
    "both quotes": Case("""a -> b: Literal["it's \\"x\\""]""", {"a": "x"}),
    "optional": Case("a: Optional[int] -> b: Optional[list[int]], c: Union[int, str, None]", {"a": 3}),
    "unions": Case("a: int | str -> b: int | None, c: list[int | str]", {"a": 3}),
    "lists": Case(
        "a: list[int] -> b: list, c: list[list[str]], d: list[Any]",
        {"a": [1]},
        [{"a": [], "b": [1], "c": [["é"]], "d": [None]}],
    ),
    "dicts": Case(
        "a: dict[str, int] -> b: dict, c: dict[str, list[int]], d: Dict[str, Any]",
        {"a": {"x": 1}},
        [
            {
                "a": {},
                "b": {"k": "v"},
                "c": {"a b": [1], "-c.d": [], "": [2], "1": [3], "ä": []},
                "d": {"x": {"y": None}, "z": True},
            }
        ],
    ),
    "tuples and sets": Case(
        "a: tuple[int, ...] -> b: tuple[int, str], c: set[int], d: frozenset[str]",
        {"a": (1, 2)},
        [{"a": (), "b": (1, "x"), "c": {1}, "d": frozenset("y")}],
    ),
    "typing": Case("a: List[int] -> b: Dict[str, int], c: Tuple[int, ...], d: Sequence[str], e: Mapping[str, int]", {"a": []}),
    "bytes and any": Case("a: bytes -> b: Any, c: bytes", {"a": b"x\xff"}, [{"a": b"y", "b": [b"z"], "c": b"\xff"}]),
    "a list for text": Case("a, b, c, d -> e", {"a": [], "b": ["one"], "c": ["one", "two\nlines"], "d": ["«x", "»"]}),
    "constraints in text": Case("a: Annotated[int, Field(gt=0)] -> b: Annotated[int, Field(ge=1, le=5)]", {"a": 1}),
    "descriptions": Case(
        (In, Out), {"text": "x", "hint": None, "tags": ["a"]}, [{"text": "t", "answer": "y", "color": Color.RED}], "Sort it."
    ),
    "enums": Case(
        "a: Color -> b: Color, c: Level, d: list[Color]",
        {"a": Color.RED},
        [{"a": Color.BLUE, "b": Color.RED, "c": Level.LOW, "d": [Color.RED]}],
        "x",
        ("Color", "Level"),
    ),
    "models": Case(
        "a: Person -> b: Person, c: list[Person], d: Optional[Person], e: dict[str, Person]",
        {"a": ADA},
        [{"a": ADA, "b": ADA, "c": [ADA, {"name": "B"}], "d": None, "e": {"a b": ADA}}, {"a": {"name": "C"}, "c": []}],
        "x",
        ("Person",),
    ),
    "a model that holds itself": Case(
        "a -> b: Node", {"a": "x"}, [{"a": "y", "b": Node(value=1, children=[Node(value=2)])}], "x", ("Node",)
    ),
    "records": Case(
        "a: Point -> b: Point, c: Movie, d: list[Movie]",
        {"a": Point(1.0)},
        [{"a": Point(1.0), "b": Point(2.0, 3.0), "c": {"title": "A & <B>", "year": 1}, "d": [{"title": "x", "year": 2}]}],
        "x",
        ("Point", "Movie"),
    ),
    "library types": Case(
        "a: Decimal -> b: UUID, c: Decimal",
        {"a": decimal.Decimal("1.50")},
        [{"a": 1, "b": uuid.UUID(int=5), "c": decimal.Decimal("2")}],
        "x",
        ("Decimal", "UUID"),
    ),
    "value: numbers": _value({"n": [1, -2.5, 1e22, True, None, 10**30]}),
    "value: float": _value(1e-7),
    "value: not a number": _value({"a": float("nan"), "b": [float("inf")]}),
    "value: int": _value(-5),
    "value: bool": _value(False),
    "value: none": _value(None),
    "value: text with marks": _value("«x»\n& < > \" '"),
    "value: nested": _value({"k": [{"é": (1, 2)}, {"x y": {}, "z": []}], 5: None, None: 1}),
    "value: date": _value(DAY),
    "value: dates": _value({"d": DAY, "t": MOMENT, "delta": datetime.timedelta(days=1, seconds=1.5), "o": datetime.time(1, 2)}),
    "value: model": _value(ADA),
    "value: model in a dict": _value({"x": ADA, "y": Color.RED, "z": Point(1.5)}),
    "value: enum": _value(Level.HIGH),
    "value: bytes": _value(b"abc"),
    "value: tuple": _value((1, "a", None)),
    "value: set": _value({7}),
    "value: decimal": _value(decimal.Decimal("0.10")),
    "value: odd object": _value(Odd()),
    "value: odd object in a dict": _value({"x": Odd(), "y": DAY}),
    "value: subclass of list": _value(Stubborn(["x"])),
    "value: ordered dict": _value(OrderedDict(a=1)),
    "value: surrogate": _value("\ud800"),
    "value: class": _value(Level),
    "value: complex": _value(1 + 2j),
    "value: numbers for text": Case("a -> b", {"a": [1, 2]}),
    "names like markers": Case("completed -> answer", {"completed": "[[ ## completed ## ]]"}),
}
