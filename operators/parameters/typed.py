"""Kinds of parameters that are types: of the data, or of what goes into a program and comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from dspex.bus.errors import TopologyError
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.fields.grammar import parse_type
from dspex.operators.native.fields.types import foreign, type_text
from dspex.operators.native.problems import problem
from dspex.operators.native.signature import Signature, as_signature
from dspex.operators.parameters.parameter import Arguments, Parameter, Types
from dspex.operators.parameters.values import TEXT, mapping
from dspex.operators.typing.refs import Local, is_ref, ref_of, resolve
from dspex.operators.typing.shape import Shape
from dspex.operators.typing.stream_checks import contradictions


@dataclass(frozen=True)
class TypeParameter(Parameter):
    """A type, or a JSON Schema as a mapping. YAML: a ref, a name of `types:`, or the text of a builtin type.

    That data can be checked against it is found out by `build`, which makes the validator: pydantic need not make it twice.
    """

    noun: ClassVar[str] = "a model, dataclass, TypedDict or builtin type"
    form: ClassVar[JsonSchema] = {
        "type": ["string", "object"],
        "description": "a ref pkg.module:Name, a name of types:, or a builtin type",
    }

    def plain(self, value: object, others: Arguments) -> object:
        return type_option(value)

    def load(self, name: str, value: object, types: Types, others: MutableMapping[str, object]) -> object:
        return type_of(value, types)


INTO = TypeParameter(None, doc="a type that validates and types the result")


@dataclass(frozen=True)
class SignatureParameter(Parameter):
    """A signature: its text, a Signature, or a class of DSPy. Checked, it is a Signature. YAML: text, and `instructions:`."""

    noun: ClassVar[str] = 'a signature: `"text -> answer"`'
    form: ClassVar[JsonSchema] = TEXT

    def check(self, name: str, value: object) -> object:
        return as_signature(value)

    def plain(self, value: object, others: Arguments) -> object:
        return signature_option(cast("Signature", value))

    def load(self, name: str, value: object, types: Types, others: MutableMapping[str, object]) -> object:
        if not isinstance(value, str):
            raise problem("DX210", f"{value!r} is not a signature", 'write "text -> answer"')
        instructions = str(others.pop("instructions", ""))
        # plain text is left as it is: so that its problems are reported together with those of the options
        return Signature(value, instructions=instructions, types=types) if types or instructions else value

    def misfits(self, operator: str, value: object, shape: Shape, others: Arguments) -> Iterator[TopologyError]:
        yield from contradictions(cast("Signature", value).annotations("outputs"), others.get("into"), shape)


def type_of(value: object, types: Types) -> Any:
    """The type that a YAML value names: a ref, a name of `types:`, or the text of a builtin type."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    if not isinstance(value, str):
        raise problem("DX221", f"{value!r} names no type", 'write "pkg.module:Name"')
    return resolve(value) if is_ref(value) else parse_type(value, types)


def type_option(tp: object) -> object:
    """A type as it stands in a node's options: its ref, or its text for one of builtins."""
    schema = mapping(tp)
    if schema is not None:
        return dict(schema)
    if isinstance(tp, type) and any(foreign(tp)):
        return ref_of(tp)
    return Local(f"<{type_text(tp)}>") if any(foreign(tp)) else type_text(tp)


def signature_option(signature: Signature) -> str:
    """A signature as its text; a `Local` where text cannot say all of it: types of the user's, descriptions."""
    text = str(signature)
    try:
        same = Signature(text, instructions=signature.instructions) == signature
    except TopologyError:
        same = False
    return text if same else Local(f"<{text}>")
