"""Replies as models write them, for the tests of the parsers: right ones, damaged ones, and ones in another format."""
# ruff: noqa: E501  # lists of texts are read best in long lines

from __future__ import annotations

import enum
import json
import re
from functools import cache
from typing import Any

import pydantic
from hypothesis import strategies as st

from dspex.bus.errors import InvalidOutput
from dspex.operators.native.replies.parse_values import REFUSED, converter
from dspex.operators.native.signature import Signature


def parse_value(value: Any, annotation: Any) -> Any:
    """The value as one of the type. Raises InvalidOutput."""
    try:
        return converter(annotation)(value)
    except REFUSED as e:
        raise InvalidOutput(str(e)) from e


class Address(pydantic.BaseModel):
    street: str
    zip: int = 0
    notes: dict[str, str] = {}


class Person(pydantic.BaseModel):
    name: str
    tags: list[str] = []
    address: Address | None = None
    friends: list[Person] = []


class Aliased(pydantic.BaseModel):
    name: str = pydantic.Field(alias="street")


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


TYPES = {"Person": Person, "Address": Address, "Aliased": Aliased, "Level": Level}
SPECS = [
    "q -> answer",
    "q -> answer, score: float",
    "q -> a, b, c",
    "q -> answer: str | None, score: float | None",
    "q, answer_in -> n: int, ok: bool",
    "q -> label: Literal['x', 'y z', \"it's\"], words: list[str]",
    "q -> data: dict[str, Any], items: list[dict[str, int]]",
    "q -> person: Person",
    "q -> people: list[Person], home: Address | None",
    "q -> u: Union[int, str], v: Union[list[int], str], w: Any",
    "q -> t: tuple[int, str], s: set[int], d: datetime.date",
    "q -> réponse, 答え: int",
    "q -> alias: Aliased, level: Level",
    "q -> item: list[str], entry: dict[str, list[int]]",
]


ours = cache(lambda spec: Signature(spec, types=TYPES))


# -- what models say ----------------------------------------------------------------------------------------------
LINES = ["\n", "\n\n", "\n \n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", " ", ""]
PIECES = [
    "Paris", "two words", "a\nb", "a\n\nb", "  x  ", "", " ", "5", "-1", "0.5", "True", "false", "None", "null", "NaN", "x", "y z", "it's", "'x'", '"x"',
    "['a', 'b']", '["a", "b"]', "[1, 2]", "[1, 2", "(1, 'a')", "{1, 2}", "2024-01-02", "1_000", "1,000", "99999999999999999999", '{"k": 1}', "{'k': 1}",
    '[{"k": 1}]', '{"name": "n"}', '{"name": "n", "tags": ["t"], "address": {"street": "s", "zip": "7"}}', '[{"name": "n", "friends": [{"name": "m"}]}]',
    '{"street": "s"}', "a \x0b b", "a\r\nb", "a\u2028b", "\x1fx\x1f", "\u00a0x", "x\u3000", "\ud800", "\x00", "😀", "é", "[[ ## x ## ]]", "see [[ ## a ## ]] here",
    "[[ ##", "x [[ ## completed ## ]]\n", "x [[ ## b ## ]]\ny", "x [[ ## score ## ]]\n1", "## ]]", "```json\n[1]\n```", "<b>bold</b>", "a < b & c", "&lt;tag&gt;", "&amp;", "&#65;", "&unknown;", "<br/>", "<![CDATA[ <x> ]]>", "<!-- c -->",
    "\\n", "\\", "\"", "'", "}", "{", "]", ",", ":", "// c", "# h", "“q”",
]  # fmt: skip
piece = st.sampled_from(PIECES) | st.text(max_size=8)
content = st.lists(piece, max_size=3).flatmap(lambda p: st.sampled_from(LINES).map(lambda s: s.join(p)))


def names_of(spec: str) -> list[str]:
    return [*ours(spec).outputs, *ours(spec).inputs, "completed", "unknown", "Answer"]


HEADERS = ["[[ ## {} ## ]]"] * 8 + [
    "  [[ ## {} ## ]]", "\t[[ ## {} ## ]]", "\u00a0[[ ## {} ## ]]", "\x1f[[ ## {} ## ]] ", " " * 30 + "[[ ## {} ## ]]", "**[[ ## {} ## ]]**", "x [[ ## {} ## ]]",
    "[[ ## {} ## ]] ", "[[ ## {} ## ]]]", "[[ ## {} ##]]", "[[ ##{} ## ]]", "[[## {} ##]]", "[[ ## {}  ## ]]", "[ ## {} ## ]", "[[ ## {} ## ]] [[ ## {} ## ]]", "## {}", "[[ ## {} ## ]]\n[[ ## {} ## ]]",
]  # fmt: skip


@st.composite
def chat_replies(draw: st.DrawFn) -> tuple[str, str]:
    """A signature, and a reply with headers: mostly right ones, in and out of order, with any text between."""
    spec = draw(st.sampled_from(SPECS))
    names = draw(
        st.sampled_from([list(ours(spec).outputs), [*ours(spec).outputs, "completed"]])
        | st.lists(st.sampled_from(names_of(spec)), max_size=5)
    )
    typed = draw(st.booleans())
    if not draw(st.integers(0, 2)):  # just as it was asked for, with anything in the values
        values = [(n, draw(right_values(spec, n) if typed else content)) for n in ours(spec).outputs]
        return spec, "".join(f"[[ ## {n} ## ]]\n{v}\n\n" for n, v in values) + "[[ ## completed ## ]]\n"
    parts = [draw(content)] if draw(st.booleans()) else []
    for name in names:
        header = draw(st.sampled_from(HEADERS)) if draw(st.booleans()) else HEADERS[0]
        value = draw(right_values(spec, name)) if typed and name in ours(spec).outputs else draw(content)
        parts.append(header.replace("{}", name) + draw(st.sampled_from(["\n"] * 4 + LINES)) + value)
    return spec, draw(st.sampled_from(["\n\n", "\n", "\n", *LINES])).join(parts)


def right_values(spec: str, name: str) -> st.SearchStrategy[str]:
    """Texts that fit the type of a field, mostly."""
    value = fitting(ours(spec).outputs[name].annotation)
    return value.map(lambda v: v if isinstance(v, str) else json.dumps(v)) | value.map(str)


def fitting(annotation: Any) -> st.SearchStrategy[Any]:
    """Plain values that the type takes."""
    text = repr(annotation)
    person = st.fixed_dictionaries(
        {"name": piece},
        optional={
            "tags": st.lists(piece, max_size=2),
            "address": st.none() | st.fixed_dictionaries({"street": piece, "zip": st.integers()}),
        },
    )
    table: list[tuple[str, st.SearchStrategy[Any]]] = [
        ("list.*Person", st.lists(person, max_size=2)),
        ("Person", person),
        (
            "Address",
            st.none() | st.fixed_dictionaries({"street": piece}, optional={"notes": st.dictionaries(piece, piece, max_size=2)}),
        ),
        ("Literal", st.sampled_from(["x", "y z", "it's"])),
        ("list.dict", st.lists(st.dictionaries(piece, st.integers(), max_size=2), max_size=2)),
        ("dict.str, list", st.dictionaries(piece, st.lists(st.integers(), max_size=2), max_size=2)),
        ("dict", st.dictionaries(piece, st.integers() | piece | st.floats(), max_size=2)),
        ("list", st.lists(piece, max_size=3) | st.lists(st.integers(), max_size=3)),
        ("set", st.lists(st.integers(), max_size=3)),
        ("tuple", st.tuples(st.integers(), piece).map(list)),
        ("date", st.dates().map(str)),
        ("float", st.floats() | st.integers()),
        ("bool", st.booleans()),
        ("int", st.integers()),
        ("str", content),
    ]
    return next((s for pattern, s in table if re.search(pattern, text)), content | st.integers() | st.none())


@st.composite
def objects(draw: st.DrawFn, spec: str) -> str:
    names = list(ours(spec).outputs)
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from([*names, *names, "unknown", "q"]), max_size=4))
    plain = (
        piece
        | st.integers()
        | st.none()
        | st.floats()
        | st.lists(piece, max_size=2)
        | st.dictionaries(piece, piece, max_size=2)
    )
    pairs = [
        (n, draw(fitting(ours(spec).outputs[n].annotation) if n in ours(spec).outputs and draw(st.integers(0, 3)) else plain))
        for n in names
    ]
    how = draw(st.sampled_from(["json", "json", "indent", "repr", "pairs"]))
    if how == "json":
        return json.dumps(dict(pairs), ensure_ascii=draw(st.booleans()))
    if how == "indent":
        return json.dumps(dict(pairs), indent=2)
    return repr(dict(pairs)) if how == "repr" else "{" + ", ".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in pairs) + "}"


AROUND = [("", "")] * 4 + [
    ("```json\n", "\n```"), ("```\n", "\n```"), ("Sure:\n\n", ""), ("", "\nHope it helps!"), ("(see {x}) ", ""), ("", " // done"), ("[", "]"), ('"', '"'), (" \n", "\n "), ("<think>{}</think>", ""),
    ("", ", and more"), ("It's ", " (ok)"), ('{"outputs": ', "}"), ("“", "”"), ("data = ", ";"), ("1. ", ""), ("'a' ", " 'b'"), ("", "}"), ("{", "}"), ("#\n", "#"), ("\ufeff", ""), ('"x": ', ""),
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """The text, unchanged or damaged as by a weak model or a cut connection."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3]))):
        at = draw(st.integers(0, len(text)))
        how = draw(st.sampled_from(["cut", "drop", "insert", "swap"]))
        if how == "cut":
            text = text[:at]
        elif how == "drop":
            text = text[:at] + text[at + 1 :]
        elif how == "insert":
            text = text[:at] + draw(st.sampled_from(PIECES + LINES)) + text[at:]
        else:
            text = text[at:] + text[:at]
    return text


@st.composite
def json_replies(draw: st.DrawFn) -> tuple[str, str]:
    spec = draw(st.sampled_from(SPECS))
    text = draw(objects(spec))
    if not draw(st.integers(0, 5)):
        text += draw(st.sampled_from(["", "\n", ", ", " and "])) + draw(objects(spec))
    before, after = draw(st.sampled_from(AROUND))
    return spec, draw(damaged(before + text + after))


def element(name: str, value: Any) -> str:
    if isinstance(value, dict):
        inner = "".join(
            element(k, v) if str(k).isidentifier() else f"<entry key={json.dumps(str(k))}>{element('v', v)}</entry>"
            for k, v in value.items()
        )
    elif isinstance(value, list):
        inner = "".join(element("item", v) for v in value)
    else:
        inner = "" if value is None else str(value)
    return f"<{name}>{inner}</{name}>"


@st.composite
def xml_replies(draw: st.DrawFn) -> tuple[str, str]:
    """A signature, and elements: right ones, repeated ones, nested ones, with JSON in them, and broken ones."""
    spec = draw(st.sampled_from(SPECS))
    names = list(ours(spec).outputs) if draw(st.booleans()) else draw(st.lists(st.sampled_from(names_of(spec)), max_size=5))
    parts = [draw(st.sampled_from(["", "", "Sure!\n", "<x/>", "a < b"]))]
    escape = draw(st.booleans())
    for name in names:
        value = draw(fitting(ours(spec).outputs[name].annotation)) if name in ours(spec).outputs else draw(content)
        value = _escaped(value) if escape else value
        text = (
            element(name, value)
            if draw(st.booleans())
            else f"<{name}>\n{value if isinstance(value, str) else json.dumps(value)}\n</{name}>"
        )
        parts.append(text + draw(st.sampled_from(["", "\n", "\n\n", " and "])))
    return spec, draw(damaged("".join(parts)))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(c for c in value if c.isprintable() or c in "\n\r\t").replace("&", "&amp;").replace("<", "&lt;")
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return {k: _escaped(v) for k, v in value.items()} if isinstance(value, dict) else value
