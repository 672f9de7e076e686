"""The user's own types of a signature as plain data, for a process that does not have their code.

A type travels as its name, its kind and its JSON Schema. That is all that a prompt shows of it and all that a request asks a
model for; values are checked in the process that knows the type. No code travels, and nothing is imported by a name.
"""

from __future__ import annotations

import enum
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import typing_extensions

from dspex.bus.errors import TopologyError
from dspex.operators.native.fields.fields import Annotation, Field, JsonSchema, Values, get_origin
from dspex.operators.native.fields.grammar import parse_field
from dspex.operators.native.fields.type_names import KNOWN, is_known
from dspex.operators.native.fields.types import constant_text, is_model, type_text
from dspex.operators.native.problems import problem
from dspex.operators.native.prompts.names import annotation_name
from dspex.operators.native.prompts.values import classes_of

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature

MAX_SIZE = 65_536  # characters of all types of a signature, as JSON
OTHER, MODEL, TYPED_DICT, ENUM, FLAG, CODE = "other", "model", "typed_dict", "enum", "flag", "code"
KINDS = (OTHER, MODEL, TYPED_DICT, ENUM, FLAG, CODE)
_ALL_KINDS = "a pydantic model, an enum, a dataclass or a TypedDict (of typing_extensions, before Python 3.12)"
_SCALARS = (str, int, float, bool, type(None))
_OPEN = (typing.TypeVar, typing.ForwardRef, str)  # types that are not known yet
_CONTAINERS = ("builtins", "collections", "collections.abc", "types", "typing")  # modules of the classes that take parameters
_RESERVED = frozenset((*(n.partition(".")[0] for n in KNOWN), "Field", "None", "Annotated"))
_ID = re.compile(r":(\d+)")


class Described:
    """The user's types of some fields.

    Attributes:
        names: by the id of a type, the name under which the text on the wire has it.
        known: the types by that name. plain: what the other process makes stand-ins of; {} where there are no such types.

    Raises TopologyError (DX211) for a type that cannot travel.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        found = {id(t): t for f in fields for t in leaves(f.annotation)}
        self.names: dict[int, str] = {}
        self.known: dict[str, Annotation] = {}
        for at, tp in found.items():
            name = _unused(annotation_name(tp), self.known)
            self.names[at], self.known[name] = name, tp
        shown = {id(t) for f in fields if f.role == "output" for t in leaves(f.annotation)}
        self.plain: Values = self._described(shown) if found else {}
        for field in fields:
            if field.typed:
                self._check(field)

    def text(self, field: Field) -> str:
        """The field as a signature on the wire writes it."""
        if not any(leaves(field.annotation)):
            return field.text
        text = type_text(field.annotation, self.names)
        if field.constraints:
            text = f"Annotated[{text}, Field({', '.join(f'{k}={constant_text(v)}' for k, v in field.constraints.items())})]"
        return f"{field.name}: {text}"

    def _described(self, shown: set[int]) -> Values:
        cores = {n: c for n, t in self.known.items() if (c := _core(t, shown=id(t) in shown))}
        schemas, definitions = _schemas(cores)
        plain: Values = {"classes": {n: _class(t, schemas.get(n, {})) for n, t in self.known.items()}}
        if definitions:
            plain["definitions"] = definitions
        size = len(json.dumps(plain, default=str))
        if size > MAX_SIZE:
            message = f"the types {', '.join(self.known)} take {size:,} characters as JSON Schema, more than {MAX_SIZE:,}"
            raise problem("DX211", message, "name smaller types, or call a program, which knows its types itself")
        return plain

    def _check(self, field: Field) -> None:
        """Raise TopologyError (DX211) where not even the names make the field's type one that can be written."""
        try:
            parse_field(field.name, field.role, self.text(field).partition(": ")[2], self.known)
        except TopologyError as e:
            message = f"{field.name}: no signature can write the type {field.type}"
            raise problem("DX211", message, f"write Literal[...], a builtin type, {_ALL_KINDS}") from e


def digest_of(signature: Signature) -> list[str]:
    """The user's types of a signature as texts for its digest; [] where there are none, or none that can travel."""
    if not any(any(leaves(f.annotation)) for f in signature.fields):
        return []
    try:
        return [json.dumps(signature.described.plain, default=str)]
    except TopologyError:  # said where the signature is sent
        return []


def refuse_what_cannot_travel(signature: Signature) -> None:
    """Raise TopologyError (DX211) for a type of which no data can go to a worker or come back."""
    for field in signature.fields:
        if any(c.__name__ == "Tool" and _is_dspys(c) for c in classes_of(field.annotation, set())):
            message = f"{field.name}: a dspy.Tool is code, which no event and no model can write"
            raise problem("DX211", message, "name tools in react(tools=[…])")
    signature.described  # noqa: B018  # raises


def leaves(annotation: Annotation) -> Iterator[Annotation]:
    """The types in a type that no text can name in another process."""
    origin, args = get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal or annotation in (None, Any, Ellipsis) or (origin is not None and not args):
        return
    if origin is typing.Annotated:  # inside of another type, where no text can have constraints
        yield annotation
    elif isinstance(origin, type) and origin.__module__ not in _CONTAINERS:
        yield annotation  # a generic class of the user's, with its parameters
    elif origin is not None:
        for a in args:
            yield from leaves(a)
    elif isinstance(annotation, type):
        if not is_known(annotation):
            yield annotation
    elif isinstance(annotation, _OPEN) or type(annotation).__module__ not in ("typing", "builtins"):
        yield annotation


def _unused(name: str, taken: Mapping[str, object]) -> str:
    """A name for a type that a signature can write: its own, where that is one and no other type has it."""
    name = re.sub(r"\W", "_", name) or "Type"
    name = name if name[0].isalpha() else f"Type{name}"
    first, number = (name, 2) if name not in _RESERVED else (f"{name}_1", 2)
    name = first
    while name in taken:
        name, number = f"{first}_{number}", number + 1
    return name


def _class(tp: Annotation, schema: JsonSchema) -> Values:
    made: Values = {"kind": OTHER, "name": annotation_name(tp), "schema": schema}
    if language := _language(tp):
        return {**made, "kind": CODE, "language": language}
    if (owner := _formats_itself(tp)) is not None:
        message = f"{owner} is formatted by code of its own, which a worker does not have"
        raise problem("DX211", message, "put it in a program, and give the program plain data")
    if isinstance(tp, _OPEN):
        raise problem("DX211", f"{type_text(tp)} is not a type yet", f"write {_ALL_KINDS}")
    if isinstance(tp, enum.EnumMeta):
        members = {n: m.value for n, m in cast("Mapping[str, enum.Enum]", tp.__members__).items()}
        if wrong := [n for n, v in members.items() if not isinstance(v, _SCALARS)]:
            message = f"{tp.__name__}.{wrong[0]} is a {type(members[wrong[0]]).__name__}, which no model can write"
            raise problem("DX211", message, "give the members text or numbers")
        kind = FLAG if issubclass(tp, enum.Flag) else ENUM
        return {**made, "kind": kind, "members": [list(item) for item in members.items()]}
    if is_model(tp):
        return {**made, "kind": MODEL}
    return {**made, "kind": TYPED_DICT} if typing_extensions.is_typeddict(tp) else made


def _bases(tp: Annotation) -> tuple[type, ...]:
    return tp.__mro__ if isinstance(tp, type) else ()


def _is_dspys(tp: type) -> bool:
    return tp.__module__.partition(".")[0] == "dspy"


def _formats_itself(tp: Annotation) -> str | None:
    """The name of a type whose form in a prompt is DSPy's or the user's code; None for any other type."""
    return tp.__name__ if any(_is_dspys(b) for b in _bases(tp)) else None


def _language(tp: Annotation) -> str | None:
    """The language of `dspy.Code["java"]`; None for any other type."""
    is_code = any(b.__name__ == "Code" and _is_dspys(b) for b in _bases(tp)[1:])
    return str(tp.language) if is_code and tp.__name__ == f"Code_{tp.language}" else None


def _core(tp: Annotation, *, shown: bool) -> Any:
    """pydantic's schema of a type whose JSON Schema the other process needs; None for any other type.

    A prompt shows the JSON Schemas of outputs. Of an input it is needed only where it says which values are of DSPy's types.
    """
    from pydantic import PydanticUserError, TypeAdapter

    if _language(tp) or _formats_itself(tp) or isinstance(tp, _OPEN):
        return None  # said in _class
    try:
        core = TypeAdapter(tp).core_schema
        _, _, references = _generated({"": core}, by_alias=True)
    except (PydanticUserError, TypeError) as e:
        if not shown:
            return None
        why = str(e).splitlines()[0]
        raise problem("DX211", f"{type_text(tp)} has no JSON Schema: {why}", f"write {_ALL_KINDS}") from e
    return core if shown or any(map(_of_dspy, references.values())) else None


def _of_dspy(reference: str) -> bool:
    return reference.startswith("dspy.")


def _schemas(cores: Mapping[str, Any]) -> tuple[dict[str, JsonSchema], dict[str, Values]]:
    """The JSON Schemas of types by name, and the definitions that they share.

    The text of a definition is the same wherever the type is used, but its name is chosen by pydantic for each schema. So a
    definition has a key of ours, and the reference from which pydantic derives its name.
    """
    schemas, definitions, references = _generated(cores, by_alias=True)
    _, by_name, _ = _generated(cores, by_alias=False)
    made: dict[str, Values] = {}
    for key, schema in definitions.items():
        made[key] = {"reference": references[key], "schema": schema}
        if by_name[key] != schema:
            made[key]["by_name"] = by_name[key]
    return schemas, made


def _generated(
    cores: Mapping[str, Any], *, by_alias: bool
) -> tuple[dict[str, JsonSchema], dict[str, JsonSchema], dict[str, str]]:
    """Schemas by name, definitions by key, and pydantic's references by key."""
    from pydantic.json_schema import DefsRef, GenerateJsonSchema

    keys: dict[str, str] = {}

    class Generator(GenerateJsonSchema):
        def get_defs_ref(self, core_mode_ref: Any) -> DefsRef:
            key = DefsRef(keys.setdefault(core_mode_ref[0], f"T{len(keys)}"))
            self._prioritized_defsref_choices[key] = [key]
            return key

    found, definitions = Generator(by_alias=by_alias).generate_definitions([(n, "validation", c) for n, c in cores.items()])
    numbers: dict[str, int] = {}  # in place of addresses, which differ from process to process

    def reference(text: str) -> str:
        return _ID.sub(lambda m: f":{numbers.setdefault(m[1], len(numbers))}", text)

    references = {key: reference(text) for text, key in keys.items()}
    return {str(k[0]): s for k, s in found.items()}, {str(k): s for k, s in definitions.items()}, references
