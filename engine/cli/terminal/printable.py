"""What others wrote, as a terminal may show it.

A publisher chooses ids, headers and texts. A terminal would obey the control characters in them: move the cursor, change
colours and titles, show a line in another order than it has.
"""

from __future__ import annotations

import re
from typing import TextIO

_BREAKS = "\n\t"
# C0, DEL and C1; separators of lines; what changes the direction of text; halves of characters, which cannot be written at all
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with its control characters written out: `\x1b`, `\n`. `lines`: line breaks and tabs stay."""
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda c: c[0] if lines and c[0] in _BREAKS else c[0].encode("unicode_escape").decode(), text)


def width_of(stream: TextIO) -> int | None:
    """The columns of a terminal; None where it is none, so that a line may be as long as it is."""
    import shutil

    return shutil.get_terminal_size().columns if stream.isatty() else None


def printable_json(text: str) -> str:
    """A line of JSON with the control characters escaped that JSON allows in a text: DEL, C1, and what turns it around."""
    return text if text.isprintable() else _CONTROL.sub(lambda c: f"\\u{ord(c[0]):04x}", text)
