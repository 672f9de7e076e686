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
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NoReturn

from dspex.operators.native import tokens
from dspex.operators.native.constraints import CONSTRAINTS, misfit, wrong_value
from dspex.operators.native.fields import MISSING, NOTHING, Field, Role
from dspex.operators.native.tokens import FIELDS, FORM, broken
from dspex.operators.native.type_names import ARITY, BARE, FORMS, GENERIC, KNOWN, TUPLES, find, is_known
from dspex.operators.native.types import constant_text, type_text
from dspex.operators.native.words import nearest, problem

MAX_FIELDS = 1000
MAX_DEPTH = 50

# DSPy's signature classes are pydantic models and its predictors take keyword arguments: fields of these names hide
# methods (`copy`, `json`), or are taken for something else (`config`), mostly without a word
_SHADOWING = frozenset((
    "self", "cls", "copy", "json", "dict", "schema", "schema_json", "construct", "validate", "parse_obj", "parse_raw",
    "parse_file", "from_orm", "update_forward_refs", "fields", "signature", "input_fields", "output_fields", "instructions",
    "with_instructions", "append_instructions", "with_updated_fields", "append", "prepend", "insert", "delete", "equals",
    "dump_state", "load_state", "config", "demos", "lm", "new_signature", "prediction",
))  # fmt: skip
_CONSTANTS: Mapping[str, Any] = {"True": True, "False": False, "None": None}
_SAID = (*CONSTRAINTS, "description", "default")  # what `Field(…)` may say
_ANNOTATED = ("Annotated", "typing.Annotated")
_AFTER = frozenset(("", ",", "]", "|", ")"))  # what may stand after a bare name
_TYPES = "types are names, X | Y, and X[...]"
_FIELD = f"Annotated takes a type and Field with literal {', '.join(_SAID)}"
_LITERAL = "Literal takes texts, whole numbers, True, False and None"


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
    elif name.startswith("_") or keyword.iskeyword(name):
        why = "cannot be a field"
    if why:
        message = f'the signature "{tokens.shown(spec)}": the name {name!r} {why}'
        raise problem("DX210", message, f"use another name: {name.strip('_')}_text")


def check_fields(fields: Sequence[Field], spec: str) -> None:
    """Raise TopologyError for fields that are no signature together."""
    if len({f.name for f in fields}) < len(fields):
        _refuse_duplicates(fields, spec)
    if len(fields) > MAX_FIELDS:
        raise problem("DX210", f"the signature has {len(fields)} fields, more than {MAX_FIELDS}", "say less in one signature")
    if not any(f.role == "output" for f in fields):
        raise problem("DX210", f'the signature "{tokens.shown(spec)}" has no output', FORM)


def _refuse_duplicates(fields: Sequence[Field], spec: str) -> None:
    seen: set[str] = set()
    twice = sorted({f.name for f in fields if f.name in seen or seen.add(f.name)})
    if twice:
        message = f'the signature "{tokens.shown(spec)}" has {", ".join(twice)} twice'
        raise problem("DX210", message, "give each field a name of its own")


class _Side:
    """Reads one side. `at` is the number of the token that comes next."""

    __slots__ = ("_at", "_depth", "_side", "_spec", "_start", "_tokens", "_types")

    def __init__(self, spec: str, side: str, start: int, types: Mapping[str, Any]) -> None:
        self._spec, self._side, self._start, self._types = spec, side, start, types
        if "#" in side:
            tokens.refuse_open_comment(spec, start, side)
        self._tokens = tokens.tokens(side)
        self._at = self._depth = 0

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
            self._bad(_TYPES)
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
        if any(annotation is g for g in GENERIC):
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

    def _constant(self) -> Any:
        """A text, a number, True, False or None."""
        token = self._tokens[self._at]
        if token in _CONSTANTS:
            self._at += 1
            return _CONSTANTS[token]
        text = tokens.text_of(token)
        if text is not None:
            self._at += 1
            while (more := tokens.text_of(self._tokens[self._at])) is not None:  # 'a' 'b' is one text
                text, self._at = text + more, self._at + 1
            return text
        negative = token == "-"
        number = tokens.number_of(self._tokens[self._at + negative]) if token else None
        if number is None:
            self._bad("a text, a number, True, False or None is expected here")
        self._at += 1 + negative
        return -number if negative else number

    # -- types -----------------------------------------------------------------------------------------------------
    def whole_type(self) -> Any:
        annotation, _ = self._type()
        if self._tokens[self._at]:
            self._bad(_TYPES)
        return type(None) if annotation is None else annotation

    def _type(self) -> tuple[Any, str]:
        first = annotation, text = self._part()
        if self._tokens[self._at] != "|":
            return first
        found, texts = [annotation], [text]
        while self._tokens[self._at] == "|":
            self._at += 1
            annotation, text = self._part()
            found.append(annotation)
            texts.append(text)
        # At once, and not one by one, which takes time in the square of their number
        return typing.Union[tuple(found)], " | ".join(texts)  # noqa: UP007  # made at run time

    def _part(self) -> tuple[Any, str]:
        begin, token = self._at, self._tokens[self._at]
        if token in BARE and token not in self._types:  # as most are
            after = self._tokens[begin + 1]
            if after in _AFTER:
                self._at += 1
                return BARE[token], token
            if after == "[":
                self._at += 1
                return self._subscript(BARE[token], token, begin)
        if token == "None":
            self._at += 1
            return None, token
        if token == "(":
            self._at += 1
            self._enter(begin)
            found = self._type()
            self._expect(")")
            self._depth -= 1
            return found
        name = self._dotted()
        if not name or self._tokens[self._at] == "(":
            self._bad(_TYPES, begin)
        known, text = self._lookup(name, begin)
        if self._tokens[self._at] == "[":
            return self._subscript(known, text, begin)
        if known in FORMS:
            self._bad(f"{text} stands with parameters: {text}[...]", begin)
        return known, text

    def _dotted(self) -> str:
        """A name with dots or without; "" for what is none."""
        read = self._tokens
        name = tokens.name_of(read[self._at])
        if not name or keyword.iskeyword(name):
            return ""
        self._at += 1
        while read[self._at] == "." and (more := tokens.name_of(read[self._at + 1])):
            self._at += 2
            name = f"{name}.{more}"
        return name

    def _lookup(self, name: str, at: int) -> tuple[Any, str]:
        try:
            known = find(name, self._types)
        except KeyError:
            self._unknown(name, at)
        if name in self._types and not any(foreign(known)):  # DSPy in the worker knows no names of ours: written out
            return known, type_text(known)
        return known, name

    def _unknown(self, name: str, at: int) -> NoReturn:
        near = nearest(name, [*self._types, *KNOWN], 0.8) if len(name) <= 50 else None  # `Intent` is not a misspelt `int`
        if near is None:  # `date` is datetime.date, `Image` is dspy.Image
            last = name.rpartition(".")[2].lower()
            near = next((k for k in KNOWN if k.rpartition(".")[2].lower() == last), None)
        spec, name = tokens.shown(self._spec), tokens.shown(name)
        fix = f'Signature("{spec}", types={{"{name}": {name}}}), or Literal[...] in place'
        message = (
            f'unknown type {name!r} in "{spec}"\n{tokens.mark(self._spec, self._place(at))}\n'
            "  dspex looks names up in builtins, typing, datetime and types= only, so that every process agrees."
        )
        raise problem("DX209", message, f"did you mean {near}?  or {fix}" if near else fix)

    def _subscript(self, base: Any, name: str, begin: int) -> tuple[Any, str]:
        self._at += 1
        self._enter(begin)
        if base is typing.Annotated:
            self._bad("Annotated only around a whole field's type", begin)
        if base is Literal:
            made = self._literals()
            inner = ", ".join(map(constant_text, typing.get_args(made)))
        elif base in TUPLES and self._tokens[self._at] == "(" and self._tokens[self._at + 1] == ")":
            made, inner = base[()], "()"
            self._at += 2
        else:
            found, texts = self._parameters(base in TUPLES)
            made, inner = self._made(base, name, found, begin), ", ".join(texts)
        self._at += self._tokens[self._at] == ","
        self._expect("]")
        self._depth -= 1
        return made, f"{name}[{inner}]"

    def _parameters(self, is_tuple: bool) -> tuple[list[Any], list[str]]:
        found: list[Any] = []
        texts: list[str] = []
        while True:
            if is_tuple and len(found) == 1 and self._tokens[self._at] == "...":
                self._at += 1
                return [*found, ...], [*texts, "..."]
            annotation, text = self._type()
            found.append(annotation)
            texts.append(text)
            if self._tokens[self._at] != "," or self._tokens[self._at + 1] == "]":
                return found, texts
            self._at += 1

    def _made(self, base: Any, name: str, found: list[Any], begin: int) -> Any:
        wanted = 1 if base is typing.Optional else ARITY.get(base)
        if wanted is not None and len(found) != wanted:
            self._bad(f"wrong number of parameters: {name} takes {wanted}, here are {len(found)}", begin)
        try:
            return base[found[0] if len(found) == 1 else tuple(found)]
        except TypeError as e:
            self._bad(f"{name} takes no such parameters: {e}", begin)

    def _literals(self) -> Any:
        values: list[Any] = []
        while True:
            begin = self._at
            if self._dotted() in ("Literal", "typing.Literal"):  # one in another is flattened
                self._at = begin
                values += typing.get_args(self._part()[0])
            else:
                self._at = begin
                values.append(self._value_of_literal())
            if self._tokens[self._at] != "," or self._tokens[self._at + 1] == "]":
                return Literal[tuple(values)]  # pyright: ignore[reportInvalidTypeForm]
            self._at += 1

    def _value_of_literal(self) -> Any:
        begin, token = self._at, self._tokens[self._at]
        if token not in _CONSTANTS and token != "-" and tokens.text_of(token) is None and tokens.number_of(token) is None:
            self._bad(_LITERAL)
        value = self._constant()
        if isinstance(value, float):
            self._bad(_LITERAL, begin)
        return value

    # -- errors ----------------------------------------------------------------------------------------------------
    def _expect(self, token: str) -> None:
        if self._tokens[self._at] != token:
            spec = tokens.shown(self._spec)
            self._fail(
                f'the signature "{spec}" cannot be read: {token} is expected here', f"close what is open: list[int]; {FIELDS}"
            )
        self._at += 1

    def _enter(self, begin: int) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._bad(f"types may be nested {MAX_DEPTH} deep", begin)

    def _place(self, at: int) -> int:
        return self._start + tokens.place(self._side, at)

    def _bad(self, fix: str, at: int | None = None) -> NoReturn:
        place = self._place(self._at if at is None else at)
        found = self._side[place - self._start :].split(",")[0][:40].strip() or "nothing"
        self._fail(f'the signature "{tokens.shown(self._spec)}": {found} cannot be a type', fix, at)

    def _fail(self, what: str, fix: str, at: int | None = None) -> NoReturn:
        raise broken(self._spec, self._place(self._at if at is None else at), what, fix)


def _plain_name(text: str) -> str:
    small = text.rpartition(".")[2].lower()
    return small if small in BARE else "list"


def foreign(annotation: Any) -> Iterator[str]:
    """Names of the classes in a type that are on no list: other processes do not know them."""
    if typing.get_origin(annotation) is Literal:
        return
    args = typing.get_args(annotation)
    for a in args:
        yield from foreign(a)
    if not args and isinstance(annotation, type) and not is_known(annotation):
        yield annotation.__name__


def takes_none(annotation: Any) -> bool:
    """Whether None is of this type, as DSPy sees it: not of Any."""
    return annotation is type(None) or type(None) in typing.get_args(annotation)
