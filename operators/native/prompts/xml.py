"""Prompts as DSPy's XMLAdapter makes them: every field is an element."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Union, cast, get_args
from xml.sax.saxutils import quoteattr

from typing_extensions import is_typeddict

from dspex.operators.native.fields.fields import Annotation, Field, JsonSchema, get_origin
from dspex.operators.native.fields.types import is_model
from dspex.operators.native.problems import problem
from dspex.operators.native.prompts.chat import INTRODUCTION, MISSING, ChatPrompt, Demo, FieldSlot, json_schema
from dspex.operators.native.prompts.values import format_value, jsonable
from dspex.operators.native.prompts.versions import Version
from dspex.operators.native.user_types.unfolded import refuse_large

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature


class XmlPrompt(ChatPrompt):
    """As `ChatPrompt`, with elements instead of headers. Raises TopologyError (DX205) for a version without it."""

    def __init__(self, version: Version, signature: Signature) -> None:
        if not version.xml:
            raise problem("DX205", f"DSPy {version.name} has no XML adapter", "use chat or json")
        super().__init__(version, signature)

    def input_place(self, field: Field) -> FieldSlot:
        return self.output_place(field) if self.version.xml_inputs else super().input_place(field)

    def output_place(self, field: Field) -> FieldSlot:
        return field.name, f"<{field.name}>\n", f"\n</{field.name}>", field

    def structure(self, signature: Signature) -> str:
        sides = (signature.inputs.values(), signature.outputs.values())
        inputs, outputs = ("\n\n".join(map(self._structure, side)) for side in sides)
        return f"{INTRODUCTION}\n\n{inputs}\n\n{outputs}"

    def _structure(self, field: Field) -> str:
        if self.version.nested_xml and field.role == "output" and nested(field.annotation):
            return _outline(field)
        return self._shown([self.output_place(field)])

    def reminder(self, signature: Signature) -> str:
        fields = signature.outputs.values()
        names = ", then ".join(f"`<{f.name}>`" for f in fields)
        outlines = [_outline(f) for f in fields if self.version.nested_xml and nested(f.annotation)]
        more = f" Use this nested XML structure: {' '.join(outlines)}" if outlines else ""
        return f"Respond with the corresponding output fields wrapped in XML tags {names}.{more}"

    def answer(self, demo: Demo) -> str:
        return "\n\n".join(self._element(place, demo.get(place[0], MISSING)) for place in self._outputs)

    def _element(self, place: FieldSlot, value: object) -> str:
        _, before, after, field = place
        if not self.version.nested_xml:
            return f"{before}{format_value(field, value, self.version)}{after}"
        if nested(field.annotation):
            plain = jsonable(value, self.version)
            if isinstance(plain, (dict, list)):
                return "".join(_xml(plain, field.name))
        text = format_value(field, value, self.version)
        return f"{before}{_escaped(text) if field.annotation is str else text}{after}"


def nested(annotation: Annotation) -> bool:
    """Whether DSPy writes values of this type as nested elements: lists, dicts, models and TypedDicts."""
    if get_origin(annotation) in (Union, types.UnionType):
        some = [a for a in get_args(annotation) if a is not type(None)]
        annotation = some[0] if len(some) == 1 else annotation
    return get_origin(annotation) in (list, dict) or is_typeddict(annotation) or is_model(annotation)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _xml(value: object, tag: str, attributes: str = "") -> Iterator[str]:
    """JSON data as an element: items of a list are `<item>`, a key that cannot be a tag is `<entry key="…">`."""
    if value is None or value == []:
        yield f"<{tag}{attributes} />"
        return
    yield f"<{tag}{attributes}>"
    if isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _xml(item, "item")
    elif isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            fits = (key[:1] + key[1:].replace("-", "_").replace(".", "_")).isidentifier()
            yield from _xml(item, key) if fits else _xml(item, "entry", f" key={quoteattr(key)}")
    else:
        yield _escaped(str(value))
    yield f"</{tag}>"


def _outline(field: Field) -> str:
    """The elements that make up a value of the field's type, with `...` in place of their content."""
    schema = json_schema(field, by_alias=False)
    refuse_large(schema, field.name)
    return _schema_outline(field.name, schema, schema.get("$defs", {}), frozenset())


def _schema_outline(tag: str, schema: JsonSchema, definitions: Mapping[str, JsonSchema], seen: frozenset[str]) -> str:
    if reference := schema.get("$ref"):
        name = reference.rsplit("/", 1)[-1]
        if name in seen:  # a recursive type
            return f"<{tag}>...</{tag}>"
        return _schema_outline(tag, definitions[name], definitions, seen | {name})
    if choices := schema.get("anyOf"):
        chosen = next((c for c in choices if c.get("type") != "null"), choices[0])
        return _schema_outline(tag, chosen, definitions, seen)
    if schema.get("type") == "array":
        return f"<{tag}>{_schema_outline('item', schema.get('items', {}), definitions, seen)}</{tag}>"
    properties = schema.get("properties", {})
    return f"<{tag}>{''.join(_schema_outline(n, s, definitions, seen) for n, s in properties.items()) or '...'}</{tag}>"


PROMPT = XmlPrompt
