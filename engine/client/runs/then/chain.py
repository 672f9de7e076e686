"""The hashes at the ends of the lines of a file, each of its line and of the hash before."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from dspex.bus.errors import DecodeError

_HASH: Final = b',"hash":"'  # before the digits of a line's hash, with which and `"}` it ends
_DIGITS: Final = 32
_END: Final = len(_HASH) + _DIGITS + 2


def chained(before: bytes, text: bytes) -> bytes:
    """The hash of a line behind another hash."""
    return sha256(before + text).hexdigest()[:_DIGITS].encode()


class HashChain:
    """The hashes of a file's lines."""

    def __init__(self) -> None:
        self._before: bytes | None = b""  # of the line before; None: the file is one of those that have none

    def checked(self, line: bytes) -> bytes:
        """A line without its hash. Raises DecodeError where it is not as it was written."""
        text, hash = line[:-_END], line[-_DIGITS - 2 : -2]
        has_one = line[-_END : -_DIGITS - 2] == _HASH and line[-2:] == b'"}'
        if self._before is None or (self._before == b"" and not has_one):
            self._before = None
            return line
        text += b"}"
        if not has_one or chained(self._before, text) != hash:
            raise DecodeError("it was changed, or a line before it is missing")
        self._before = hash
        return text
