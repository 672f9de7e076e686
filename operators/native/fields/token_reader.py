"""Reads the tokens of one side of a signature: constants, and errors that show their place in the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, TypeAlias

from dspex.operators.native.fields import tokens
from dspex.operators.native.fields.fields import Annotation
from dspex.operators.native.fields.tokens import FIELDS, broken

Constant: TypeAlias = str | int | float | bool | None

MAX_DEPTH = 50
TYPES = "types are names, X | Y, and X[...]"
CONSTANTS: Mapping[str, bool | None] = {"True": True, "False": False, "None": None}


class TokenReader:
    """Reads tokens one after the other. `_at` is the number of the token that comes next."""

    __slots__ = ("_at", "_depth", "_side", "_spec", "_start", "_tokens", "_types")

    def __init__(self, spec: str, side: str, start: int, types: Mapping[str, Annotation]) -> None:
        self._spec, self._side, self._start, self._types = spec, side, start, types
        if "#" in side:
            tokens.refuse_open_comment(spec, start, side)
        self._tokens = tokens.tokens(side)
        self._at = self._depth = 0

    def _constant(self) -> Constant:
        """A text, a number, True, False or None."""
        token = self._tokens[self._at]
        if token in CONSTANTS:
            self._at += 1
            return CONSTANTS[token]
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
