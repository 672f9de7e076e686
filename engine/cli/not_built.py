"""Verbs and options that are not built: who types one learns that it is not a spelling mistake."""

from __future__ import annotations

import re

from dspex.bus.errors import ConfigError
from dspex.bus.settings.not_built import CODE, VERB_OPTIONS, VERBS

_NO_VERB = re.compile(r"no such command '([^']+)'", re.IGNORECASE)


def refusal(path: str, message: str, option: str | None) -> ConfigError | None:
    """The error for a verb or an option that is not built; None where the design has none of this name.

    Args:
        path: of the verb that was read, "dspex run".
        message: click's. option: the one that click does not know, if it is about one.
    """
    verb = path.removeprefix("dspex").strip()
    if option is not None and option in VERB_OPTIONS.get(verb, ()):
        return _error(f"{option} of dspex {verb}", verb)
    found = _NO_VERB.search(message)
    wanted = f"{verb} {found[1]}".strip() if found else ""
    return _error(f"dspex {wanted}", verb) if wanted in VERBS else None


def _error(what: str, verb: str) -> ConfigError:
    return ConfigError(f"{what} is not built in this version", code=CODE, fix=f"see dspex {verb}".rstrip() + " -h")
