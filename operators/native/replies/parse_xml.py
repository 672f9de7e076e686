"""Replies in the format of DSPy's XMLAdapter, an element for each field, as typed outputs."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from dspex.operators.native.adapters import Parser
from dspex.operators.native.fields.fields import Annotation, JsonSchema
from dspex.operators.native.fields.types import type_text
from dspex.operators.native.problems import problem
from dspex.operators.native.replies.outputs import OutputFields, unfit
from dspex.operators.native.replies.parse_values import Converter, constrained, converter, excerpt
from dspex.operators.native.replies.repair import MAX_DEPTH, TooHard

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature


def parser(signature: Signature) -> Parser:
    """A function that reads a reply's outputs as DSPy's XMLAdapter does.

    With a root element around it, the reply must be well-formed: `<answer>…</answer>`, in any order, with text between.
    Elements in an output become objects and lists as its JSON Schema says. The function raises InvalidOutput that lists every
    field that is missing or wrong.
    """
    outputs = _Elements(signature)

    def parse_text(text: str) -> dict[str, Any]:
        try:
            root = ET.fromstring(f"<dspy_root>{text}</dspy_root>")  # no DOCTYPE in an element: no entities
        except (ET.ParseError, ValueError) as e:  # ValueError: a lone surrogate
            raise unfit(f"it is no XML ({e})", text) from e
        return outputs.typed(_grouped(root), text)

    return parse_text


class _Elements(OutputFields):
    """Outputs whose converters take a list of elements."""

    __slots__ = ()

    def __init__(self, signature: Signature) -> None:
        super().__init__(signature)
        self.converters = {f.name: constrained(f, _converter(f.annotation)) for f in signature.outputs.values()}

    @staticmethod
    def shown(value: object) -> str:
        elements = cast("list[ET.Element]", value)
        return excerpt(_text(elements[0]) if len(elements) == 1 and not len(elements[0]) else "elements")


def _converter(annotation: Annotation) -> Converter:
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    convert = converter(annotation)
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        reader = _XmlReader(adapter.json_schema(by_alias=False))
    except PydanticUserError as e:
        raise problem("DX210", f"{type_text(annotation)} has no JSON Schema, which the XML adapter needs", "use chat") from e

    def read(elements: list[ET.Element]) -> object:
        error: ValueError | None = None
        for schema in reader.choices:
            try:
                value = reader.value(elements, schema, 0)
                try:
                    return convert(value)
                except ValidationError:
                    return adapter.validate_python(value, by_name=True)
            except ValueError as e:
                error = e
        raise error or ValueError("no type fits")

    return read


def _grouped(element: ET.Element) -> dict[str, list[ET.Element]]:
    """The children by name; `<entry key="a b">` stands for a name that no element can have."""
    found: dict[str, list[ET.Element]] = {}
    for child in element:
        name = child.attrib.get("key", child.tag) if child.tag == "entry" else child.tag
        found.setdefault(name, []).append(child)
    return found


class _XmlReader:
    """Turns elements into the JSON data that a JSON Schema describes."""

    def __init__(self, schema: JsonSchema) -> None:
        self.definitions: Mapping[str, JsonSchema] = schema.get("$defs", {})
        self.choices: list[JsonSchema] = [schema, *schema.get("anyOf", [])]

    def value(self, elements: list[ET.Element], schema: JsonSchema, depth: int) -> object:
        if depth > MAX_DEPTH:
            raise TooHard(f"the elements are nested over {MAX_DEPTH} deep")
        element = elements[0]
        schema = self.definitions.get(schema.get("$ref", "").rsplit("/", 1)[-1], schema)
        if choices := schema.get("anyOf"):
            if {"type": "null"} in choices and not len(element) and not _text(element):
                return None
            schema = self._choice(choices, element)
        if schema.get("type") == "array":
            return self._array(elements, schema, depth)
        if schema.get("type") == "string" and len(element):
            return _markup(element)
        return self._object(elements, schema, depth)

    @staticmethod
    def _choice(choices: Iterable[JsonSchema], element: ET.Element) -> JsonSchema:
        choices = [c for c in choices if c.get("type") != "null"]
        nested = (c for c in choices if c.get("type") != "string")
        return next(nested, choices[0]) if len(element) else choices[0]

    def _array(self, elements: list[ET.Element], schema: JsonSchema, depth: int) -> object:
        if len(elements) == 1:
            element = elements[0]
            text = _text(element)
            if not len(element) and (not text or text.startswith("[")):
                return text or []
            elements = _grouped(element).get("item") or elements
        items = schema.get("items", {})
        return [self.value([e], items, depth + 1) for e in elements]

    def _object(self, elements: list[ET.Element], schema: JsonSchema, depth: int) -> object:
        children = _grouped(elements[0])
        if not children:
            if schema.get("type") == "object" and not _text(elements[0]):
                return {}
            texts = [_text(e) for e in elements]
            return texts[0] if len(texts) == 1 else texts
        known = schema.get("properties", {})
        other = schema.get("additionalProperties", {})
        other = other if isinstance(other, dict) else {}
        return {name: self.value(items, known.get(name, other), depth + 1) for name, items in children.items()}


def _text(element: ET.Element) -> str:
    return (element.text or "").strip()


def _markup(element: ET.Element) -> str:
    """The content of an element as markup."""
    if _deep(element):
        raise TooHard(f"the elements are nested over {MAX_DEPTH} deep")
    return (element.text or "") + "".join(ET.tostring(child, encoding="unicode") for child in element)


def _deep(element: ET.Element) -> bool:
    level = [element]
    for _ in range(MAX_DEPTH):
        level = [child for e in level for child in e]
        if not level:
            return False
    return True
