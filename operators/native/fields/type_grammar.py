"""Types as a signature writes them, read from tokens: names of a list, `X | Y`, `X[...]`, and the constants of `Literal`."""

from __future__ import annotations

import keyword
import typing
from typing import Literal, NoReturn, cast

from dspex.operators.native.fields import tokens
from dspex.operators.native.fields.fields import Annotation, get_origin
from dspex.operators.native.fields.token_reader import CONSTANTS, TYPES, Constant, TokenReader
from dspex.operators.native.fields.type_names import ARITY, BARE, FORMS, KNOWN, TUPLES, find, parametrized
from dspex.operators.native.fields.types import constant_text, foreign, type_text
from dspex.operators.native.problems import nearest, problem

_AFTER = frozenset(("", ",", "]", "|", ")"))  # tokens that may follow a name without parameters
_LITERAL = "Literal takes texts, whole numbers, True, False and None"


class TypeReader(TokenReader):
    """Reads types."""

    __slots__ = ()

    def whole_type(self) -> Annotation:
        annotation, _ = self._type()
        if self._tokens[self._at]:
            self._bad(TYPES)
        return type(None) if annotation is None else annotation

    def _type(self) -> tuple[Annotation, str]:
        first = annotation, text = self._part()
        if self._tokens[self._at] != "|":
            return first
        found, texts = [annotation], [text]
        while self._tokens[self._at] == "|":
            self._at += 1
            annotation, text = self._part()
            found.append(annotation)
            texts.append(text)
        # All at once: one by one takes time in the square of their number.
        return parametrized(typing.Union, found), " | ".join(texts)

    def _part(self) -> tuple[Annotation, str]:
        begin, token = self._at, self._tokens[self._at]
        if token in BARE and token not in self._types:  # the usual case
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
        """A name with or without dots; "" for another token."""
        read = self._tokens
        name = tokens.name_of(read[self._at])
        if not name or keyword.iskeyword(name):
            return ""
        self._at += 1
        while read[self._at] == "." and (more := tokens.name_of(read[self._at + 1])):
            self._at += 2
            name = f"{name}.{more}"
        return name

    def _lookup(self, name: str, at: int) -> tuple[Annotation, str]:
        try:
            known = find(name, self._types)
        except KeyError:
            self._unknown(name, at)
        if name in self._types and not any(foreign(known)):  # a worker does not know this name: its meaning is written out
            return known, type_text(known)
        return known, name

    def _unknown(self, name: str, at: int) -> NoReturn:
        self._check_word(at)
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

    def _subscript(self, base: Annotation, name: str, begin: int) -> tuple[Annotation, str]:
        self._at += 1
        self._enter(begin)
        if base is typing.Annotated:
            self._bad("Annotated only around a whole field's type", begin)
        if base is Literal:
            made = self._literals()
            inner = ", ".join(map(constant_text, typing.get_args(made)))
        elif base in TUPLES and self._tokens[self._at : self._at + 3] == ["(", ")", "]"]:
            made, inner = cast("Annotation", base)[()], "()"
            self._at += 2
        else:
            found, texts = self._parameters(base in TUPLES)
            made, inner = self._made(base, name, found, begin), ", ".join(texts)
        self._at += self._tokens[self._at] == ","
        self._expect("]")
        self._depth -= 1
        return made, f"{name}[{inner}]"

    def _parameters(self, is_tuple: bool) -> tuple[list[Annotation], list[str]]:
        found: list[Annotation] = []
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

    def _made(self, base: Annotation, name: str, found: list[Annotation], begin: int) -> Annotation:
        wanted = 1 if base is typing.Optional else ARITY.get(base)
        if wanted is not None and len(found) != wanted:
            self._bad(f"wrong number of parameters: {name} takes {wanted}, here are {len(found)}", begin)
        try:
            return parametrized(base, found)
        except TypeError as e:
            self._bad(f"{name} takes no such parameters: {e}", begin)

    def _literals(self) -> Annotation:
        values: list[Constant] = []
        read = self._tokens
        while True:
            token = read[self._at]
            text = tokens.text_of(token)
            if text is not None and read[self._at + 1] in (",", "]"):  # the usual case
                values.append(text)
                self._at += 1
            elif token in ("Literal", "typing"):  # a Literal in a Literal: its values are added
                values += self._inner_literals()
            else:
                values.append(self._value_of_literal())
            if read[self._at] != "," or read[self._at + 1] == "]":
                return Literal[tuple(values)]  # pyright: ignore[reportInvalidTypeForm]
            self._at += 1

    def _inner_literals(self) -> tuple[Constant, ...]:
        begin = self._at
        found, _ = self._part()
        if get_origin(found) is not Literal:
            self._bad(_LITERAL, begin)
        return typing.get_args(found)

    def _value_of_literal(self) -> Constant:
        begin, token = self._at, self._tokens[self._at]
        if token not in CONSTANTS and token != "-" and tokens.text_of(token) is None and tokens.number_of(token) is None:
            self._bad(_LITERAL)
        value = self._constant()
        if isinstance(value, float):
            self._bad(_LITERAL, begin)
        return value
