"""The elements of a reply in XML that arrives in pieces."""

from __future__ import annotations

import re
from xml.parsers import expat
from xml.sax.saxutils import escape

from dspex.operators.native.replies.streaming import FieldSplitter

_SPECIAL = re.compile("[<&]")
_TAG_ENDS = re.compile("[>\"']")
_LONG_ENTITY = 32  # characters; the entities of XML are shorter


class XmlScanner:
    """Gives whole tags to expat: it would read a part of a tag again with each new piece, which takes quadratic time."""

    __slots__ = ("_broken", "_depth", "_fields", "_held", "_kind", "_parser", "_quote", "_tail", "_token")

    def __init__(self, fields: FieldSplitter) -> None:
        self._fields = fields
        self._held: list[str] = []  # the parts of a tag, comment or entity whose end has not come
        self._kind = ""  # the characters that end the held part; "" while its kind is unknown
        self._tail = ""  # the last characters of the held part
        self._quote = ""  # the quotation mark of the attribute that is being read
        self._token = ""
        self._depth = 0  # of open elements, the root included
        self._broken = False
        self._parser = expat.ParserCreate(namespace_separator="}")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._give("<dspex_root>")

    def feed(self, piece: str) -> None:
        at = 0
        while at < len(piece) and not self._broken:
            at = self._in_token(piece, at) if self._held else self._in_text(piece, at)

    def finish(self) -> None:
        """A tag or an entity without an end is no text: there is nothing to give."""

    def _in_text(self, piece: str, at: int) -> int:
        found = _SPECIAL.search(piece, at)
        end = found.start() if found else len(piece)
        if end > at:
            self._give(piece[at:end])
        if not found:
            return end
        self._held, self._tail, self._quote = [found.group()], found.group(), ""
        self._kind = ";" if found.group() == "&" else ""
        return end + 1

    def _in_token(self, piece: str, at: int) -> int:
        """Read on to the place where the tag, comment or entity may end."""
        if not self._kind:
            return self._begin(piece, at)
        end = self._tag_end(piece, at) if self._kind == ">" else piece.find(self._kind[-1], at) + 1
        part = piece[at:end] if end else piece[at:]
        self._held.append(part)
        self._tail = (self._tail + part[-3:])[-3:]
        if self._kind == ";" and sum(map(len, self._held)) > _LONG_ENTITY:
            self._broken = True
        elif end and self._tail.endswith(self._kind):
            self._whole()
        return end or len(piece)

    def _begin(self, piece: str, at: int) -> int:
        """Find out from the first characters whether it is a tag, a comment, CDATA or an instruction."""
        self._held.append(piece[at])
        self._tail += piece[at]
        begun = "".join(self._held)
        for opening, ending in (("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>")):
            if begun == opening:
                self._kind, self._tail = ending, ""
                return at + 1
            if opening.startswith(begun):
                return at + 1
        self._kind = ">"
        self._held.pop()
        return at

    def _tag_end(self, piece: str, at: int) -> int:
        """The index after the `>` that ends the tag; 0: it does not end in this piece."""
        for found in _TAG_ENDS.finditer(piece, at):
            char = found.group()
            if char == ">" and not self._quote:
                return found.end()
            if char != ">":
                self._quote = "" if char == self._quote else self._quote or char
        return 0

    def _whole(self) -> None:
        token = "".join(self._held)
        self._held, self._kind = [], ""
        self._token = token
        self._give(token)

    def _give(self, text: str) -> None:
        try:
            self._parser.Parse(text, False)
        except (expat.ExpatError, ValueError):  # ValueError: a lone surrogate; the parser refuses the whole reply then
            self._broken = True

    # -- handlers that expat calls
    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth == 2:
            self._fields.open(attributes.get("key", name) if name == "entry" else name)
        elif self._depth > 2:
            self._fields.text(self._token)

    def _end(self, name: str) -> None:  # expat passes the name
        self._depth -= 1
        if self._depth == 1:
            self._fields.open(None)
        elif self._depth > 1 and not self._token.endswith("/>"):
            self._fields.text(self._token)

    def _text(self, data: str) -> None:
        if self._depth > 1:
            self._fields.text(data if self._depth == 2 else escape(data))


SCANNER = XmlScanner
