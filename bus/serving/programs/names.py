"""What names a saved state of a program."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from dspex.bus.errors import ConfigError

_REF: Final = re.compile(r"([a-z][a-z0-9_-]{0,47})(?:@([1-9][0-9]{0,8}|[a-z][a-z0-9_-]{0,47}))?")


class StateName(NamedTuple):
    """What names a saved state. `version`: a number, an alias, or "" for the newest."""

    program: str
    version: str = ""

    @classmethod
    def read(cls, text: str) -> StateName:
        """Raises ConfigError (DX105) for what is no such name."""
        if not (found := _REF.fullmatch(text)):
            raise ConfigError(
                f"{text[:100]!r} does not name a saved program",
                code="DX105",
                fix='write "draft@4" (a version), "draft@prod" (an alias) or "draft" (the newest), in lower case',
            )
        return cls(found[1], found[2] or "")

    @property
    def fixed(self) -> bool:
        """Whether it names the same state for good."""
        return self.version.isdecimal()
