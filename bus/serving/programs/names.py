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


def is_version(text: str) -> bool:
    """Whether it names one version of a program."""
    found = _REF.fullmatch(text)
    return found is not None and (found[2] or "").isdecimal()


def may_mean(name: str | None, version: str) -> bool:
    """Whether `name` means a version of that program, now this one and later another one. `version`: see `is_version`."""
    return name is not None and name.partition("@")[0] == version.partition("@")[0] and not is_version(name)
