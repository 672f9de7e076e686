"""The text of a signature: fields, and their types by a fixed list of names. One descent over the tokens.

    signature  := fields "->" fields
    fields     := [ field { "," field } [","] ]
    field      := NAME [ ":" annotated ]
    annotated  := "Annotated" "[" annotated { "," "Field" "(" { NAME "=" constant } ")" } "]"  |  type
    type       := part { "|" part }
    part       := NAME { "." NAME } [ "[" type { "," type } "]" ]  |  "(" type ")"  |  "None"

Comments, line ends, and the constants of `Literal` are those of Python.
"""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from dspex.operators.native.fields import tokens
from dspex.operators.native.fields.constraints import CONSTRAINTS, misfit, wrong_value
from dspex.operators.native.fields.fields import MISSING, NOTHING, Field, Role
from dspex.operators.native.fields.tokens import FIELDS, FORM
from dspex.operators.native.fields.type_grammar import TYPES, TypeReader
from dspex.operators.native.fields.type_names import BARE, GENERIC
from dspex.operators.native.fields.types import constant_text, takes_none
from dspex.operators.native.suggestions import nearest, problem

MAX_FIELDS = 1000
MAX_PATTERNS = 16

# DSPy's signature classes are pydantic models and its predictors take keyword arguments: fields of these names hide
# methods (`copy`, `json`), or are taken for something else (`config`), mostly without a word
_SHADOWING = frozenset((
    "self", "cls", "copy", "json", "dict", "schema", "schema_json", "construct", "validate", "parse_obj", "parse_raw",
    "parse_file", "from_orm", "update_forward_refs", "fields", "signature", "input_fields", "output_fields", "instructions",
    "with_instructions", "append_instructions", "with_updated_fields", "append", "prepend", "insert", "delete", "equals",
    "dump_state", "load_state", "config", "demos", "lm", "new_signature", "prediction",
))  # fmt: skip
_SAID = (*CONSTRAINTS, "description", "default")  # what `Field(…)` may say
_ANNOTATED = ("Annotated", "typing.Annotated")
_FIELD = f"Annotated takes a type and Field with literal {', '.join(_SAID)}"


def parse(spec: str, types: Mapping[str, Any]) -> tuple[Field, ...]:
    """The fields of a signature, inputs first. Raises TopologyError (DX209, DX210) that shows where it cannot be read."""
    if not isinstance(spec, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise problem("DX210", f"{spec!r} is not the text of a signature", FORM)
    left, right = tokens.sides(spec)
    if not spec.isascii() or "\0" in spec:
        tokens.refuse_odd(spec)
    inputs = _Side(spec, left, 0, types).fields("input")
    outputs = _Side(spec, right, len(left) + 2, types).fields("output")
    made = (*inputs, *outputs)
    check_fields(made, spec)
    return made


def parse_type(text: str, types: Mapping[str, Any]) -> Any:
    """A type by its text, under the rules of signatures. Raises TopologyError (DX209, DX210)."""
    if len(text) > tokens.MAX_TEXT or "->" in text:
        raise problem("DX210", f"{tokens.shown(text)!r} is not a type", 'write "pkg.module:Name", or a builtin type')
    tokens.refuse_odd(text)
    return _Side(text, text, 0, types).whole_type()


def parse_field(name: str, role: Role, text: str) -> Field:
    """One field by the text of its type. Raises TopologyError (DX209, DX210)."""
    if len(text) > tokens.MAX_TEXT or "->" in text:
        raise problem("DX210", f"{tokens.shown(text)!r} is not a type", "types are names, X | Y, and X[...]")
    tokens.refuse_odd(text)
    return _Side(text, text, 0, NOTHING).only_field(name, role)


def refuse_name(spec: str, name: str) -> None:
    """Raise TopologyError for a name that cannot be a field's, or is taken for something else by DSPy."""
    why = None
    if name in _SHADOWING or name.startswith("model_"):
        why = "has a meaning of its own in DSPy"
    elif name.startswith("_") or keyword.iskeyword(name) or not tokens.name_of(name):
        why = "cannot be a field"
    if why:
        message = f'the signature "{tokens.shown(spec)}": the name {tokens.shown(name)!r} {why}'
        raise problem("DX210", message, f"use another name: {tokens.shown(name).strip('_')}_text")


def check_fields(fields: Sequence[Field], spec: str) -> None:
    """Raise TopologyError for fields that are no signature together."""
    if len({f.name for f in fields}) < len(fields):
        _refuse_duplicates(fields, spec)
    if len(fields) > MAX_FIELDS:
        raise problem("DX210", f"the signature has {len(fields)} fields, more than {MAX_FIELDS}", "say less in one signature")
    if sum("pattern" in f.constraints for f in fields if f.constraints) > MAX_PATTERNS:
        raise problem(
            "DX210", f"the signature has more than {MAX_PATTERNS} patterns", "check the rest behind the call: validate"
        )
    if not fields or fields[-1].role != "output":  # inputs come first
        raise problem("DX210", f'the signature "{tokens.shown(spec)}" has no output', FORM)


def _refuse_duplicates(fields: Sequence[Field], spec: str) -> None:
    twice = ", ".join(sorted(n for n, times in Counter(f.name for f in fields).items() if times > 1))
    message = f'the signature "{tokens.shown(spec)}" has {tokens.shown(twice)} twice'
    raise problem("DX210", message, "give each field a name of its own")


class _Side(TypeReader):
    """Reads the fields of one side."""

    __slots__ = ()

    # -- fields ----------------------------------------------------------------------------------------------------
    def fields(self, role: Role) -> list[Field]:
        made: list[Field] = []
        read = self._tokens
        while token := read[self._at]:
            name = self._field_name(token)
            self._at += 1
            made.append(self._field(name, role) if read[self._at] == ":" else Field(name, role, "str", typed=False))
            end = read[self._at]
            if end == ",":
                self._at += 1
            elif end:
                self._unexpected(end)
        return made

    def only_field(self, name: str, role: Role) -> Field:
        """The field of a text that is a type and nothing else."""
        self._at = -1
        made = self._field(name, role)
        if self._tokens[self._at]:
            self._bad(TYPES)
        return made

    def _field_name(self, token: str) -> str:
        name = tokens.name_of(token)
        if not name:
            self._unexpected(token)
        if name in _SHADOWING or name[0] in "_m" or keyword.iskeyword(name):
            refuse_name(self._spec, name)
        return name

    def _unexpected(self, token: str) -> NoReturn:
        """A token where a field, a comma or the end should be."""
        spec = tokens.shown(self._spec)
        if token in ("*", "/", "="):
            self._fail(f'the signature "{spec}" uses *, / or a default, which DSPy drops without a word', FIELDS)
        if token in (")", "]"):
            self._fail(f'the signature "{spec}" is not a list of fields: nothing is open here', FIELDS)
        wanted = "a name" if self._at == 0 or self._tokens[self._at - 1] == "," else "a comma, or the end of the fields"
        self._fail(f'the signature "{spec}" cannot be read: {wanted} is expected here', FIELDS)

    def _field(self, name: str, role: Role) -> Field:
        self._at += 1
        begin, token = self._at, self._tokens[self._at]
        if token in BARE and token not in self._types and self._tokens[begin + 1] in ("", ","):  # as most are
            self._at += 1
            known = BARE[token]
            return Field(name, role, token, "", NOTHING, known is not type(None), known)
        annotation, text, said = self._annotated()
        if annotation is None:
            self._bad("leave the field out, or write str | None: DSPy makes text of None", begin)
        if id(annotation) in GENERIC:
            self._bad(f"write {text}[...]; did you mean {_plain_name(text)}?", begin)
        required = not takes_none(annotation)
        return (
            self._said(Field(name, role, text, "", NOTHING, required, annotation), said, begin)
            if said
            else (Field(name, role, text, "", NOTHING, required, annotation))
        )

    def _said(self, field: Field, said: dict[str, Any], begin: int) -> Field:
        """The field with what `Field(…)` says of it."""
        constraints = {k: v for k, v in said.items() if k in CONSTRAINTS}
        if wrong := misfit(field.annotation, constraints):
            self._bad(wrong, begin)
        return replace(
            field,
            type=f"Annotated[{field.type}, Field({', '.join(f'{k}={constant_text(v)}' for k, v in said.items())})]",
            description=said.get("description", ""),
            constraints=constraints or NOTHING,
            required=field.required and "default" not in said,
            default=said.get("default", MISSING),
        )

    # -- constraints -----------------------------------------------------------------------------------------------
    def _annotated(self) -> tuple[Any, str, dict[str, Any]]:
        """A field's type, its text, and what `Field(…)` says of it."""
        begin = self._at
        if self._tokens[begin] not in ("Annotated", "typing") or self._dotted() not in _ANNOTATED or "Annotated" in self._types:
            self._at = begin
            return (*self._type(), {})
        self._expect("[")
        self._enter(begin)
        annotation, text, said = self._annotated()
        if self._tokens[self._at] != ",":
            self._bad(_FIELD)
        while self._tokens[self._at] == "," and self._tokens[self._at + 1] != "]":
            self._at += 1
            self._arguments(said)
        self._at += self._tokens[self._at] == ","
        self._expect("]")
        self._depth -= 1
        return annotation, text, said

    def _arguments(self, said: dict[str, Any]) -> None:
        """`Field(ge=1, le=5)`."""
        if self._tokens[self._at] != "Field" or self._tokens[self._at + 1] != "(":
            self._bad(_FIELD)
        self._at += 2
        while self._tokens[self._at] != ")":
            begin, key = self._at, self._tokens[self._at]
            if key not in _SAID or self._tokens[self._at + 1] != "=":
                near = nearest(key[:50], _SAID)
                self._bad(f"{_FIELD}; did you mean {near}?" if near else _FIELD)
            if key in said:
                self._bad(f"say {key} once")
            self._at += 2
            said[key] = value = self._constant()
            wrong = wrong_value(key, value) if key in CONSTRAINTS else None
            if wrong or (key == "description" and not isinstance(value, str)):
                self._bad(wrong or "description takes text", begin)
            if self._tokens[self._at] == ",":
                self._at += 1
            elif self._tokens[self._at] != ")":
                self._expect(")")
        self._at += 1


def _plain_name(text: str) -> str:
    small = text.rpartition(".")[2].lower()
    return small if small in BARE else "list"
