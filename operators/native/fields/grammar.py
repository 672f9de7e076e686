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
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn, cast

from dspex.operators.native.fields import tokens
from dspex.operators.native.fields.constraints import CONSTRAINTS, misfit, wrong_value
from dspex.operators.native.fields.field_names import SHADOWING, check_fields, refuse_name
from dspex.operators.native.fields.fields import MISSING, NOTHING, Annotation, Constraints, Field, Role
from dspex.operators.native.fields.token_reader import TYPES, Constant
from dspex.operators.native.fields.tokens import FIELDS, FORM
from dspex.operators.native.fields.type_grammar import TypeReader
from dspex.operators.native.fields.type_names import BARE, GENERIC
from dspex.operators.native.fields.types import constant_text, takes_none
from dspex.operators.native.problems import nearest, problem

_ARGUMENTS = (*CONSTRAINTS, "description", "default")  # what `Field(…)` may have
_ANNOTATED = ("Annotated", "typing.Annotated")
_FIELD = f"Annotated takes a type and Field with literal {', '.join(_ARGUMENTS)}"


def parse(spec: str, types: Mapping[str, Annotation]) -> tuple[Field, ...]:
    """The fields of a signature, inputs first. Raises TopologyError (DX209, DX210) that shows the wrong place."""
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


def parse_type(text: str, types: Mapping[str, Annotation]) -> Annotation:
    """A type by its text, under the rules of signatures. Raises TopologyError (DX209, DX210)."""
    if len(text) > tokens.MAX_TEXT or "->" in text:
        raise problem("DX210", f"{tokens.shown(text)!r} is not a type", 'write "pkg.module:Name", or a builtin type')
    tokens.refuse_odd(text)
    return _Side(text, text, 0, types).whole_type()


def parse_field(name: str, role: Role, text: str, types: Mapping[str, Annotation] = NOTHING) -> Field:
    """One field by the text of its type. Raises TopologyError (DX209, DX210)."""
    if len(text) > tokens.MAX_TEXT or "->" in text:
        raise problem("DX210", f"{tokens.shown(text)!r} is not a type", "types are names, X | Y, and X[...]")
    tokens.refuse_odd(text)
    return _Side(text, text, 0, types).only_field(name, role)


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
        if name in SHADOWING or name[0] in "_m" or keyword.iskeyword(name):
            refuse_name(self._spec, name)
        return name

    def _unexpected(self, token: str) -> NoReturn:
        """A token where a field, a comma or the end should be."""
        spec = tokens.shown(self._spec)
        if token in ("*", "/", "="):
            self._fail(f'the signature "{spec}" uses *, / or a default, which DSPy drops silently', FIELDS)
        if token == "-" and self._at:
            self._check_word(self._at - 1)
        if token in (")", "]"):
            self._fail(f'the signature "{spec}" is not a list of fields: nothing is open here', FIELDS)
        wanted = "a name" if self._at == 0 or self._tokens[self._at - 1] == "," else "a comma, or the end of the fields"
        self._fail(f'the signature "{spec}" cannot be read: {wanted} is expected here', FIELDS)

    def _field(self, name: str, role: Role) -> Field:
        self._at += 1
        begin, token = self._at, self._tokens[self._at]
        if token in BARE and token not in self._types and self._tokens[begin + 1] in ("", ","):  # the usual case
            self._at += 1
            known = BARE[token]
            return Field(name, role, token, "", NOTHING, known is not type(None), known)
        annotation, text, arguments = self._annotated()
        if annotation is None:
            self._bad("leave the field out, or write str | None: DSPy makes text of None", begin)
        if id(annotation) in GENERIC:
            self._bad(f"write {text}[...]; did you mean {_plain_name(text)}?", begin)
        required = not takes_none(annotation)
        made = Field(name, role, text, "", NOTHING, required, annotation)
        return self._with_arguments(made, arguments, begin) if arguments else made

    def _with_arguments(self, field: Field, arguments: dict[str, Constant], begin: int) -> Field:
        """The field with the arguments of its `Field(…)`."""
        constraints = cast("Constraints", {k: v for k, v in arguments.items() if k in CONSTRAINTS})
        if wrong := misfit(field.annotation, constraints):
            self._bad(wrong, begin)
        return replace(
            field,
            type=f"Annotated[{field.type}, Field({', '.join(f'{k}={constant_text(v)}' for k, v in arguments.items())})]",
            description=cast("str", arguments.get("description", "")),
            constraints=constraints or NOTHING,
            required=field.required and "default" not in arguments,
            default=arguments.get("default", MISSING),
        )

    # -- constraints -----------------------------------------------------------------------------------------------
    def _annotated(self) -> tuple[Annotation, str, dict[str, Constant]]:
        """A field's type, its text, and the arguments of its `Field(…)`."""
        begin = self._at
        if self._tokens[begin] not in ("Annotated", "typing") or self._dotted() not in _ANNOTATED or "Annotated" in self._types:
            self._at = begin
            return (*self._type(), {})
        self._expect("[")
        self._enter(begin)
        annotation, text, arguments = self._annotated()
        if self._tokens[self._at] != ",":
            self._bad(_FIELD)
        while self._tokens[self._at] == "," and self._tokens[self._at + 1] != "]":
            self._at += 1
            self._arguments(arguments)
        self._at += self._tokens[self._at] == ","
        self._expect("]")
        self._depth -= 1
        return annotation, text, arguments

    def _arguments(self, arguments: dict[str, Constant]) -> None:
        """Read `Field(ge=1, le=5)` into a dictionary."""
        if self._tokens[self._at] != "Field" or self._tokens[self._at + 1] != "(":
            self._bad(_FIELD)
        self._at += 2
        while self._tokens[self._at] != ")":
            begin, key = self._at, self._tokens[self._at]
            if key not in _ARGUMENTS or self._tokens[self._at + 1] != "=":
                near = nearest(key[:50], _ARGUMENTS)
                self._bad(f"{_FIELD}; did you mean {near}?" if near else _FIELD)
            if key in arguments:
                self._bad(f"say {key} once")
            self._at += 2
            arguments[key] = value = self._constant()
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
