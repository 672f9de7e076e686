"""A row of a file, and what is said where a file cannot be read."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NamedTuple

from dspex.bus.errors import ConfigError, DataError

LARGEST: Final = 64 << 20  # bytes of one row, over which it is no event; see bus/serving/payloads.py
CODE = "DX120"
MEND = "correct the file and publish it again"


class Row(NamedTuple):
    """One datum.

    Attributes:
        where: "test.csv:17", with the number of its line, or of the row where the file has no lines.
        number: from 1.
        fault: why it cannot be published; None where it can.
        fix: what to do about that.
    """

    where: str
    number: int
    data: object = None
    fault: str | None = None
    fix: str = MEND

    def id(self, file: bytes, body: bytes) -> str:
        """The id of its event: the same whenever the same row of the same file goes to the same subject.

        `file`: subject and digest of all that the file holds; `body`: the data as it is published.
        """
        return blake2b(b"%b %d %b" % (file, self.number, body), digest_size=16).hexdigest()

    def failed(self, why: str, fix: str = MEND) -> Row:
        """The same row, as one that cannot be published."""
        return Row(self.where, self.number, None, why, fix)

    def error(self) -> DataError:
        """The error that says what is wrong with it."""
        return DataError(str(self.fault), code=CODE, node=self.where, fix=self.fix)


def unreadable(name: str, why: str, fix: str = MEND) -> ConfigError:
    """The error of a file that cannot be read at all."""
    return ConfigError(f"cannot read {name}: {why}", code=CODE, fix=fix)


def needs_pyarrow(name: str, what: str) -> ConfigError:
    """The error of a file that cannot be read with what is installed."""
    return ConfigError(f"cannot read {name}: {what} needs pyarrow", code="DX109", fix="pip install 'dspex[arrow]'")
