"""Keys of dspex's own, which lie in variables that settings name: they sign records, and seal what is stored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from dspex.bus.errors import ConfigError

SHORTEST: Final = 32  # characters of a key: 16 random bytes in hex digits


def secrets_of(named: str | None, node: str, setting: str, environ: Mapping[str, str] = os.environ) -> tuple[bytes, ...]:
    """The keys in the variables that a setting names, with commas between them; none where it names none.

    Raises ConfigError (DX112) if a variable is not set, or what it holds is too short to be a key.
    """
    names = named.split(",") if named else []
    for name in names:
        if len(key := environ.get(name, "")) < SHORTEST:
            why = f"has {len(key)} characters, and a key needs {SHORTEST}" if key else "is not set"
            raise ConfigError(
                f"{node}: the variable {name}, named by {setting}, {why}",
                code="DX112",
                fix=f"export {name}=…   (make one: openssl rand -hex 32)",
                node=node,
            )
    return tuple(environ[name].encode(errors="surrogateescape") for name in names)  # it may be any bytes
