"""Prompts as DSPy's ChatAdapter makes them: fields below headers, `[[ ## name ## ]]`."""

from __future__ import annotations

import enum
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from inspect import isclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, cast, get_args

from dspex.operators.native.fields.fields import Field, JsonSchema, get_origin
from dspex.operators.native.problems import problem
from dspex.operators.native.prompts.names import annotation_name
from dspex.operators.native.prompts.values import format_value, has_a_known_form, refuse_marker
from dspex.operators.native.prompts.versions import Version, version_of

if TYPE_CHECKING:
    from dspex.operators.native.adapters import ChatMessage
    from dspex.operators.native.signature import Signature

Demo: TypeAlias = Mapping[str, object]  # an example: inputs and outputs by name
FieldSlot: TypeAlias = tuple[str, str, str, Field]  # name, text before the value, text after the value, the field

INTRODUCTION = "All interactions will be structured in the following way, with the appropriate values filled in."
INCOMPLETE = "This is an example of the task, though some input or output fields are not supplied."
MISSING = "Not supplied for this particular example. "
CLOSING = "[[ ## completed ## ]]\n"


class ChatPrompt:
    """The parts of a prompt that depend on the signature alone, made once. The other adapters change some of them.

    Raises TopologyError (DX205, DX210) for a signature with a type that a prompt cannot show.
    """

    def __init__(self, version: Version, signature: Signature) -> None:
        self.version = version
        refuse_unknown_forms(signature)
        self._fields: tuple[str, ...] = tuple(f.name for f in signature.fields)
        self._names = (tuple(signature.inputs), tuple(signature.outputs))
        self._inputs = [self.input_place(f) for f in signature.inputs.values()]
        self._outputs = [self.output_place(f) for f in signature.outputs.values()]
        self._reminder = self.reminder(signature)
        self._system: ChatMessage = {
            "role": "system",
            "content": f"{_descriptions(signature, version)}\n{self.structure(signature)}\n{_task(signature)}",
        }

    @classmethod
    def of(cls, signature: Signature, version: str | None) -> Self:
        """The prompt of this signature for a version of DSPy, made once. Raises TopologyError (DX205, DX210)."""
        known = version_of(version)
        return signature.compiled((cls, known.name), partial(cls, known))

    # -- what depends on the signature ------------------------------------------------------------------------------
    def input_place(self, field: Field) -> FieldSlot:
        return field.name, f"[[ ## {field.name} ## ]]\n", "", field

    def output_place(self, field: Field) -> FieldSlot:
        return ChatPrompt.input_place(self, field)

    def structure(self, signature: Signature) -> str:
        """The part of the system message that shows what inputs and outputs look like."""
        sides = (signature.inputs.values(), signature.outputs.values())
        shown = (self._shown(map(self.output_place, fields)) for fields in sides)
        return "\n\n".join([INTRODUCTION, *shown, CLOSING]).strip()

    def _shown(self, places: Iterable[FieldSlot]) -> str:
        return "\n\n".join(f"{before}{note(field, self.version)}{after}" for _, before, after, field in places).strip()

    def reminder(self, signature: Signature) -> str:
        """The end of the request: which fields to answer, and how."""
        outputs = signature.outputs.values()
        names = ", then ".join(f"`[[ ## {f.name} ## ]]`{type_hint(f, self.version)}" for f in outputs)
        start = "Respond with the corresponding output fields, starting with the field"
        return f"{start} {names}, and then ending with the marker for `[[ ## completed ## ]]`."

    # -- what depends on the data -----------------------------------------------------------------------------------
    def messages(self, data: Mapping[str, object], demos: Sequence[Demo]) -> list[ChatMessage]:
        """The prompt for these inputs and examples. Raises InvalidInput for a value that a prompt cannot show."""
        made = [self._system.copy()]  # a copy: the caller may change it
        if demos:
            complete, incomplete = self._sorted(demos)
            for demo in incomplete:
                made += self._example(INCOMPLETE, demo)
            for demo in complete:
                made += self._example("", demo)
        made.append({"role": "user", "content": refuse_marker(self._user("", data, self._reminder))})
        return made

    def _sorted(self, demos: Sequence[Demo]) -> tuple[list[Demo], list[Demo]]:
        """Examples that have every field, and those that have at least one input and one output. Others are left out."""
        complete: list[Demo] = []
        incomplete: list[Demo] = []
        for demo in demos:
            for name in self._fields:
                if demo.get(name) is None:
                    if all(any(n in demo for n in side) for side in self._names):
                        incomplete.append(demo)
                    break
            else:
                complete.append(demo)
        return complete, incomplete

    def _example(self, start: str, demo: Demo) -> tuple[ChatMessage, ChatMessage]:
        return (
            {"role": "user", "content": refuse_marker(self._user(start, demo, ""))},
            {"role": "assistant", "content": self.answer(demo)},
        )

    def _user(self, start: str, data: Mapping[str, object], end: str) -> str:
        parts = [start] if start else []
        for name, before, after, field in self._inputs:
            if name in data:
                value = data[name]
                text = value if type(value) is str else format_value(field, value, self.version)
                parts.append(f"{before}{text}{after}")
        if end:  # the reminder has no space around it: without strip(), which would copy the whole text
            parts.append(end)
            return "\n\n".join(parts)
        return "\n\n".join(parts).strip()

    def answer(self, demo: Demo) -> str:
        """The answer that the model should have given for an example."""
        parts: list[str] = []
        for name, before, after, field in self._outputs:
            value = demo.get(name, MISSING)
            text = value if type(value) is str else format_value(field, value, self.version)
            parts.append(f"{before}{text}{after}")
        shown = "\n\n".join(parts).strip()
        return f"{shown}\n\n{CLOSING}" if self.version.completed else shown


def refuse_unknown_forms(signature: Signature) -> None:
    """Raise TopologyError (DX205) for fields that only DSPy itself can format."""
    for field in signature.fields:
        if not has_a_known_form(field):
            raise problem("DX205", f"{field.name}: {field.type} is a type of DSPy's own", 'let DSPy answer: route="worker"')


def _descriptions(signature: Signature, version: Version) -> str:
    sides = (signature.inputs.values(), signature.outputs.values())
    inputs, outputs = ("\n".join(_description(i, f, version) for i, f in enumerate(side, 1)).strip() for side in sides)
    return f"Your input fields are:\n{inputs}\nYour output fields are:\n{outputs}"


def _description(number: int, field: Field, version: Version) -> str:
    shown = "" if field.description == f"${{{field.name}}}" else field.description  # DSPy's own placeholder
    limits = f"\nConstraints: {field.limits}" if field.limits else ""
    return f"{number}. `{field.name}` ({annotation_name(field.annotation, version)}): {shown}{limits}"


def _task(signature: Signature) -> str:
    lines = textwrap.dedent(signature.objective).splitlines()
    return "In adhering to this structure, your objective is: " + "".join(f"\n        {line}" for line in lines)


def type_hint(field: Field, version: Version) -> str:
    """The part of the reminder about the type of an output; "" for text."""
    if field.annotation is str:
        return ""
    return f" (must be formatted as a valid Python {annotation_name(field.annotation, version)})"


def note(field: Field, version: Version) -> str:
    """A placeholder for a field's value; for an output also the form that its value must have."""
    wanted = "" if field.role == "input" else _requirement(field, version)
    return f"{{{field.name}}}        # note: the value you produce {wanted}" if wanted else f"{{{field.name}}}"


def _requirement(field: Field, version: Version) -> str:
    kind = field.annotation
    if kind is str:
        return ""
    if kind is bool:
        return "must be True or False"
    if kind in (int, float):
        return f"must be a single {kind.__name__} value"
    if isclass(kind) and issubclass(kind, enum.Enum):
        members = [m.value for m in kind] if version.enum_values else kind.__members__
        return f"must be one of: {'; '.join(map(str, members))}"
    if get_origin(kind) is Literal:
        return f"must exactly match (no extra characters) one of: {'; '.join(map(str, get_args(kind)))}"
    schema = json.dumps(_type_first(json_schema(field)), ensure_ascii=False)
    return f"must adhere to the JSON schema: {schema}"


def json_schema(field: Field, *, by_alias: bool = True) -> JsonSchema:
    """The JSON Schema of a field's type. Raises TopologyError (DX210) for a type that has none."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        return TypeAdapter(field.annotation).json_schema(by_alias=by_alias)
    except PydanticUserError as e:
        message = f"{field.name}: the type {field.type} cannot be described to a model: {e.message}"
        raise problem("DX210", message, "use a type that has a JSON Schema") from e


def _type_first(schema: object) -> object:
    """The schema with sorted keys, but `type` first: the order in which DSPy shows it to a model."""
    if isinstance(schema, Mapping):
        items = cast("Mapping[str, object]", schema).items()
        return {k: _type_first(v) for k, v in sorted(items, key=lambda item: (item[0] != "type", item[0]))}
    return [_type_first(item) for item in cast("list[object]", schema)] if isinstance(schema, list) else schema


PROMPT = ChatPrompt
