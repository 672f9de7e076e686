"""A user's types, and programs that use them. A worker has this module for the programs; signatures bring the types."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Optional, TypeVar

import dspy
from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator
from typing_extensions import TypedDict

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    DEEP_BLUE = "deep blue"


class Level(enum.IntEnum):
    """How urgent it is."""

    LOW = 1
    HIGH = 2


class Mood(str, enum.Enum):  # noqa: UP042  # as many write it
    GOOD = "good"
    FINE = "good"  # noqa: PIE796  # an alias
    BAD = "bad"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


class Address(BaseModel):
    """Where somebody lives."""

    street: str = Field(description="with the number", max_length=80)
    zip_code: str = Field(alias="zipCode", pattern=r"^\d+$")


class Ticket(BaseModel):
    title: str
    level: Level = Level.LOW
    at: datetime.datetime | None = None
    tags: list[str] = Field(default_factory=list)
    colors: dict[str, Color] = {}


class Node(BaseModel):
    """A tree."""

    value: int
    children: list[Node] = []


class Man(BaseModel):
    name: str
    dog: Optional[Dog] = None  # noqa: UP045  # as many write it


class Dog(BaseModel):
    owner: Man | None = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Fish(BaseModel):
    kind: Literal["fish"]
    salty: bool


class Pet(BaseModel):
    model_config = ConfigDict(title="A pet", json_schema_extra={"examples": [{"pet": {"kind": "cat", "lives": 9}}]})
    pet: Annotated[Cat | Fish, Field(discriminator="kind")]


class Strict(BaseModel):
    """Which text it takes is code, of which its JSON Schema says nothing."""

    model_config = ConfigDict(strict=True, frozen=True)
    code: str

    @field_validator("code", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return f"#{value}" if isinstance(value, int) else value

    @field_serializer("code")
    def _shown(self, value: str) -> str:
        return value.lower()


class Box(BaseModel, Generic[T]):
    value: T


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0
    label: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Pair(Generic[T]):
    first: T
    second: T


class Row(TypedDict):
    id: int
    note: NotRequired[str]
    at: Address


class Span(NamedTuple):
    start: int
    end: int


class Photo(BaseModel):
    image: dspy.Image
    more: list[dspy.Image] = []
    caption: str = ""


def other_ticket() -> Any:
    """Another class of the same name."""

    class Ticket(BaseModel):
        price: float

    return Ticket


OtherTicket = other_ticket()


class Closes(dspy.Module):
    """A program that uses its argument as what the annotation says."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict(dspy.Signature({
            "text": (str, dspy.InputField()), "ticket": (Ticket, dspy.InputField()),
            "where": (list[Address], dspy.InputField()),
            "answer": (Ticket, dspy.OutputField()), "boxes": (list[Box[Ticket]], dspy.OutputField()),
        }))  # fmt: skip

    async def aforward(self, text: str, ticket: Ticket, where: list[Address]) -> Any:
        text = f"{text} {ticket.level.name} {where[0].zip_code}"
        return await self.ask.acall(text=text, ticket=ticket, where=where)


class Looks(dspy.Module):
    """A program that gets images as objects, and whose answer holds one."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("text, photos: list[dspy.Image], main: Optional[dspy.Image] -> answer")

    async def aforward(self, text: str, photos: list[dspy.Image], main: dspy.Image | None) -> Any:
        found = await self.ask.acall(text=text, photos=photos, main=main)
        return dspy.Prediction(answer=found.answer, best=photos[0], all=[main, *photos])


def nothing(x: int) -> str:
    """Do nothing."""
    return str(x)
