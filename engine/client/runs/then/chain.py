"""The hashes at the ends of the lines of a file, each of its line and of the hash before."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

from dspex.bus.errors import DecodeError

_HASH: Final = re.compile(rb',"hash":"([0-9a-f]{32})"}')  # how a line ends


def chained(before: bytes, text: bytes) -> bytes:
    """The hash of a line behind another hash."""
    return sha256(before + text).hexdigest()[:32].encode()


class HashChain:
    """The hashes of a file's lines."""

    def __init__(self) -> None:
        self._before: bytes | None = b""  # of the line before; None: the file is one of those that have none

    def checked(self, line: bytes) -> bytes:
        """A line without its hash. Raises DecodeError where it is not as it was written."""
        found = _HASH.search(line, max(0, len(line) - 44))
        if self._before is None or (self._before == b"" and found is None):
            self._before = None
            return line
        text = line[: found.start()] + b"}" if found is not None else b""
        if found is None or chained(self._before, text) != found[1]:
            raise DecodeError("it was changed, or a line before it is missing")
        self._before = found[1]
        return text
