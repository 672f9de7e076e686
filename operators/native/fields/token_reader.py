"""Reads the tokens of one side of a signature: constants, and errors that show their place in the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn, TypeAlias

from dspex.operators.native.fields import tokens
from dspex.operators.native.fields.fields import Annotation
from dspex.operators.native.fields.tokens import FIELDS, broken

Constant: TypeAlias = str | int | float | bool | None

MAX_DEPTH = 50
_SHOWN = 40  # characters of what cannot be a type
_WORD = re.compile(r"[\w.-]+")
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
        found = self._until_comma(self._at if at is None else at) or "nothing"
        self._fail(f'the signature "{tokens.shown(self._spec)}": {found} cannot be a type', fix, at)

    def _until_comma(self, at: int) -> str:
        """The text from token `at` to the comma behind it that no bracket and no quotes are around."""
        depth, end = 0, at
        for end in range(at, len(self._tokens)):
            token = self._tokens[end]
            depth += (token in ("[", "(")) - (token in ("]", ")"))
            if not token or depth < 0 or (token == "," and not depth):
                break
        found = self._side[tokens.place(self._side, at) : tokens.place(self._side, end)].strip()
        return found if len(found) <= _SHOWN else f"{found[:_SHOWN]}…"

    def _check_word(self, at: int) -> None:
        """Refuse a name that goes on with what no name may have: `My-Type`, of which `My` alone would be shown."""
        place = tokens.place(self._side, at)
        word = _WORD.match(self._side, place)
        if word is not None and "-" in word[0].strip("-."):
            spec, good = tokens.shown(self._spec), word[0].replace("-", "_")
            what = f'the signature "{spec}": {tokens.shown(word[0])} is not a name'
            self._fail(what, f"a name has letters, digits and _: {tokens.shown(good)}", at)

    def _fail(self, what: str, fix: str, at: int | None = None) -> NoReturn:
        raise broken(self._spec, self._place(self._at if at is None else at), what, fix)
