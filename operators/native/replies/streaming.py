"""A reply's fields while the reply arrives: pieces of text go in, and the text of each field comes out, without markers."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from dspex.operators.native.adapters import ADAPTERS, Adapter
from dspex.operators.native.problems import did_you_mean, problem

if TYPE_CHECKING:
    from collections.abc import Iterable

FieldText = tuple[str, str]


class FieldSplitter:
    """Collects the text of one field after the other. The first field of a name counts; names that are not wanted are left out.

    Space at the beginning of a field is left out. Space that may be at its end is held back: the parser strips both.
    """

    __slots__ = ("_blank", "_chunks", "_held", "_name", "_wanted")

    def __init__(self, wanted: Iterable[str]) -> None:
        self._wanted = set(wanted)  # the fields that have not come yet
        self._name: str | None = None
        self._blank = True  # nothing but space so far
        self._held: list[str] = []
        self._chunks: list[tuple[str, list[str]]] = []

    def open(self, name: str | None) -> None:
        """The text that follows belongs to the field `name`; None: to no field."""
        self._name = name if name in self._wanted else None
        self._wanted.discard(name or "")
        self._blank = True
        self._held.clear()

    def text(self, text: str) -> None:
        """Add text of the field; space around the whole is stripped."""
        if self._name is None:
            return
        if self._blank:
            text = text.lstrip()
            if not text:
                return
            self._blank = False
        kept = text.rstrip()
        if kept:
            self.exact("".join([*self._held, kept]))
            self._held.clear()
        if len(kept) < len(text):
            self._held.append(text[len(kept) :])

    def exact(self, text: str) -> None:
        """Add text of the field without stripping it."""
        if self._name is None or not text:
            return
        if self._chunks and self._chunks[-1][0] == self._name:
            self._chunks[-1][1].append(text)
        else:
            self._chunks.append((self._name, [text]))

    def forget_space(self) -> None:
        """Drop the space that was held back."""
        self._held.clear()

    def take(self) -> list[FieldText]:
        """The text that was added since the last call, by field."""
        chunks, self._chunks = self._chunks, []
        return [(name, "".join(parts)) for name, parts in chunks]


class Scanner(Protocol):
    """Reads a reply in the format of one adapter and gives the text to a FieldSplitter. It reads each character once."""

    def __init__(self, fields: FieldSplitter) -> None: ...

    def feed(self, piece: str) -> None: ...

    def finish(self) -> None: ...


def end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """The end of what the pattern matches at this index; the index itself where it does not match."""
    found = pattern.match(text, at)
    return found.end() if found else at


class Splitter:
    """Splits one reply into its fields while it arrives.

    The pieces of a field, put together, are the text that `Signature.parse` reads the field from, however the reply was cut:
    for chat exactly that (stripped, lines ended by a line feed); for json the decoded text of a string, the JSON of another
    value; for xml the decoded text (stripped), or the markup where there is some in the field. A field that comes twice
    is given once, as it came first. Broken JSON and XML are given as far as they can be read; only the parser repairs them,
    at the end.

    Args:
        names: of the fields that are wanted; other text is left out.
        adapter: "chat", "json" or "xml".

    Raises TopologyError (DX205) for an unknown adapter.
    """

    __slots__ = ("_fields", "_scanner")

    def __init__(self, names: Iterable[str], adapter: Adapter = "chat") -> None:
        if adapter not in ADAPTERS:
            raise problem("DX205", f"there is no adapter {adapter!r}", did_you_mean(str(adapter), ADAPTERS))
        self._fields = FieldSplitter(names)
        made = import_module(f".streaming_{adapter}", __package__)
        self._scanner: Scanner = made.SCANNER(self._fields)

    def feed(self, piece: str) -> list[FieldText]:
        """The texts that `piece` adds: (field, text). Text that may be a marker, or space at an end, is held back."""
        self._scanner.feed(piece)
        return self._fields.take()

    def finish(self) -> list[FieldText]:
        """The text that was held back. The splitter cannot be used again."""
        self._scanner.finish()
        return self._fields.take()
