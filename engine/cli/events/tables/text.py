"""The text of a file of rows, in UTF-8, whatever encoding it came in.

What an encoding is, is read from the bytes where they tell it: a byte order mark; bytes that are UTF-8; the zeros of UTF-16.
Windows-1252, of which Latin-1 is a part, says nothing about itself. A text is taken for it only where every byte beyond ASCII
is a letter or a sign that texts of Western Europe have where it stands; Polish, Turkish, Russian or Chinese bytes are not.
Everything else is refused, and `--encoding` says it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Final

from dspex.bus.errors import ConfigError
from dspex.engine.cli.events.tables.content import beginning, temporary
from dspex.engine.cli.events.tables.row import CODE, LARGEST, unreadable

WESTERN: Final = "cp1252"
UTF8_MARK: Final = b"\xef\xbb\xbf"
_MARKS: Final = {
    UTF8_MARK: "utf-8",
    b"\xff\xfe\x00\x00": "utf-32-le",  # before UTF-16, whose mark it begins with
    b"\x00\x00\xfe\xff": "utf-32-be",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
}
_SAMPLE: Final = 4096  # bytes that tell UTF-16 without a mark
_LETTERS: Final = "À-ÏÑ-ÖØ-Üß-ïñ-öø-üÿœŒ"  # without those of Iceland: in Turkish text these bytes are others
_SIGNS: Final = re.escape("€‚„…‰‘’“”•–—™‹›\xa0¡¢£¥§©ª«®°±²³´µ·º»¼½¾¿×÷")
_CUT: Final = b"\xc2\xc3\xe2"  # how letters and signs of Western Europe begin in UTF-8
_ODD: Final = re.compile(
    rf"[^\x00-\x7f{_LETTERS}{_SIGNS}]"  # a byte that Western text does not have
    rf"|[A-Za-z{_LETTERS}][€‚„…‰“”•™‹›¡¢£¥§©«®°±²³´µ»¼½¾¿×÷][A-Za-z{_LETTERS}]"  # a sign in the midst of a word
    rf"|[£¥²³¼½¾][A-Za-z{_LETTERS}]"
    rf"|[{_LETTERS}]{{4}}"  # hardly a word: text in which all letters are beyond ASCII
)


def known_encoding(name: str) -> str:
    """The encoding as Python calls it. Raises ConfigError (DX120) for one that there is not."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name).close()
    except (LookupError, ValueError) as e:  # also for hex, rot13 and others that are no encodings of text
        raise ConfigError(f"there is no encoding {name!r}", code=CODE, fix="--encoding utf-8, latin-1, cp1252, utf-16 …") from e
    plain = name.lower().replace("_", "-")
    return "utf-8" if plain in ("utf8", "utf-8-sig") else plain


def as_utf8(name: str, file: IO[bytes], wanted: str | None, stack: ExitStack) -> tuple[IO[bytes], str]:
    """The same text in UTF-8, without a byte order mark, and a remark where it was taken for something by a guess.

    Raises ConfigError (DX120) for what is no text, or not in the encoding.
    """
    mark, marked = next(((m, e) for m, e in _MARKS.items() if beginning(file).startswith(m)), (b"", None))
    encoding = wanted or marked or _utf16(beginning(file, _SAMPLE)) or "utf-8"
    if marked is not None and marked.startswith(encoding):
        encoding = marked
    elif marked is not None:
        raise unreadable(name, f"it begins with the mark of {marked}, and --encoding says {wanted}", "leave --encoding out")
    if encoding != "utf-8":
        return _translated(name, file, encoding, len(mark), stack), ""
    fault = _first_fault(name, file)
    if fault is None:
        return (_translated(name, file, encoding, len(mark), stack) if mark else file), ""
    line, byte, guess = fault
    if wanted is None and guess and not mark:
        remark = f"{name} is not UTF-8 (line {line}), and is read as Windows-1252, of which Latin-1 is a part"
        return _translated(name, file, WESTERN, 0, stack), f"{remark}; --encoding says what else it is"
    why = f"line {line} is not UTF-8: it has the byte 0x{byte:02x}"
    raise unreadable(name, why, "correct the line, or say what the encoding of the file is: --encoding latin-1")


def _utf16(head: bytes) -> str | None:
    """UTF-16 without a mark: every second byte of text in Latin letters is zero."""
    even, odd, half = head[::2].count(0), head[1::2].count(0), len(head) // 2
    if half < 2 or not 0.4 * half < max(even, odd) or min(even, odd) > 0.05 * half:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _translated(name: str, file: IO[bytes], encoding: str, start: int, stack: ExitStack) -> IO[bytes]:
    """The text in UTF-8, from byte `start` on. Raises ConfigError (DX120) that names the line that is in another encoding."""
    kept, whole = temporary(stack), 0  # lines
    file.seek(start)
    text = io.TextIOWrapper(file, encoding=encoding, newline="")
    try:
        while line := text.readline(LARGEST):
            if len(line) == LARGEST:
                raise _too_long(name, whole + 1)
            kept.write(line.encode())
            whole += 1
    except UnicodeError as e:
        before = e.object[: e.start].decode(encoding, "replace") if isinstance(e, UnicodeDecodeError) else ""
        why = f"line {whole + 1 + before.count(chr(10))} is not in {encoding}: {_reason(e)}"
        raise unreadable(name, why, "name the right one: --encoding") from e
    finally:
        text.detach()
    return kept


def _reason(e: UnicodeError) -> str:
    return e.reason if isinstance(e, UnicodeDecodeError | UnicodeEncodeError) else str(e)


def _lines(name: str, file: IO[bytes]) -> Iterator[bytes]:
    """The lines. Raises ConfigError (DX120) for one that is too long to lie in memory."""
    file.seek(0)
    number = 0
    while line := file.readline(LARGEST):
        number += 1
        if len(line) == LARGEST and (after := line.rfind(b"\r") + 1):  # old Macs end their lines so
            file.seek(after - len(line), io.SEEK_CUR)
            line = line[:after]
        elif len(line) == LARGEST:
            raise _too_long(name, number)
        yield line


def _too_long(name: str, number: int) -> ConfigError:
    return unreadable(name, f"line {number} has {LARGEST:,} bytes or more", "write one row a line, of what an event may hold")


def _first_fault(name: str, file: IO[bytes]) -> tuple[int, int, bool] | None:
    """Line and byte of what is not UTF-8 first, and whether the whole text may be Windows-1252; None where all is UTF-8."""
    first: tuple[int, int] | None = None
    western, has_utf8 = True, False
    for number, line in enumerate(_lines(name, file), 1):
        if line.isascii():
            continue
        try:
            line.decode()
            has_utf8 = True
        except UnicodeDecodeError as e:
            first = first or (number, line[e.start])
            cut = line[e.start] in _CUT and e.end == len(line)  # in the midst of a letter of UTF-8
            western = western and not cut and _may_be_western(line)
        if first and (has_utf8 or not western):
            return *first, False
    return (*first, True) if first else None


def _may_be_western(line: bytes) -> bool:
    try:
        return _ODD.search(line.decode(WESTERN)) is None
    except UnicodeDecodeError:
        return False
