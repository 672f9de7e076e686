"""Types as a signature writes them, read from tokens: names of a list, `X | Y`, `X[...]`, and the constants of `Literal`."""

from __future__ import annotations

import keyword
import typing
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, cast

from dspex.operators.native.fields import tokens
from dspex.operators.native.fields.tokens import FIELDS, broken
from dspex.operators.native.fields.type_names import ARITY, BARE, FORMS, KNOWN, TUPLES, find, parametrized
from dspex.operators.native.fields.types import constant_text, foreign, type_text
from dspex.operators.native.suggestions import nearest, problem

MAX_DEPTH = 50

_CONSTANTS: Mapping[str, Any] = {"True": True, "False": False, "None": None}
_AFTER = frozenset(("", ",", "]", "|", ")"))  # what may stand after a bare name
TYPES = "types are names, X | Y, and X[...]"
_LITERAL = "Literal takes texts, whole numbers, True, False and None"


class TypeReader:
    """Reads types from one side of a signature. `_at` is the number of the token that comes next."""

    __slots__ = ("_at", "_depth", "_side", "_spec", "_start", "_tokens", "_types")

    def __init__(self, spec: str, side: str, start: int, types: Mapping[str, Any]) -> None:
        self._spec, self._side, self._start, self._types = spec, side, start, types
        if "#" in side:
            tokens.refuse_open_comment(spec, start, side)
        self._tokens = tokens.tokens(side)
        self._at = self._depth = 0

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
            self._bad(TYPES)
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
        return parametrized(typing.Union, found), " | ".join(texts)

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
            self._bad(TYPES, begin)
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
        elif base in TUPLES and self._tokens[self._at : self._at + 3] == ["(", ")", "]"]:
            made, inner = cast("Any", base)[()], "()"
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
            return parametrized(base, found)
        except TypeError as e:
            self._bad(f"{name} takes no such parameters: {e}", begin)

    def _literals(self) -> Any:
        values: list[Any] = []
        read = self._tokens
        while True:
            token = read[self._at]
            text = tokens.text_of(token)
            if text is not None and read[self._at + 1] in (",", "]"):  # as most are
                values.append(text)
                self._at += 1
            elif token in ("Literal", "typing"):  # one in another is flattened
                values += self._inner_literals()
            else:
                values.append(self._value_of_literal())
            if read[self._at] != "," or read[self._at + 1] == "]":
                return Literal[tuple(values)]  # pyright: ignore[reportInvalidTypeForm]
            self._at += 1

    def _inner_literals(self) -> tuple[Any, ...]:
        begin = self._at
        found, _ = self._part()
        if typing.get_origin(found) is not Literal:
            self._bad(_LITERAL, begin)
        return typing.get_args(found)

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
