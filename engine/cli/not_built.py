"""Verbs and options of the design that this version does not have: who types one learns that it is not a spelling mistake."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dspex.bus.errors import ConfigError
from dspex.bus.settings.not_built import CODE

_VERBS = {
    "test", "plan", "apply", "gateway", "runs", "replay", "fork", "diff", "sessions", "state", "pools", "programs", "pause",
    "resume", "delete", "approvals", "optimize", "eval", "shadow", "audit", "ui", "mcp", "skills",
    "bench call", "bench stream", "bench pipeline", "bench ingest", "bench runs", "bench keyed", "server permissions",
}  # fmt: skip
_OPTIONS: Mapping[str, frozenset[str]] = {
    "check": frozenset({"--live"}),
    "run": frozenset({"--reload", "--http", "--metrics", "--profile", "--processes"}),
    "publish": frozenset({"--format", "--encoding"}),
    "call": frozenset({"--stream", "--detach"}),
    "status": frozenset({"--routes", "--health"}),
    "dlq redrive": frozenset({"--time", "--rate"}),
    "doctor": frozenset({"--fix"}),
    "bench native": frozenset({"-c", "--cached", "--sizes", "--mixed"}),
}
_NO_VERB = re.compile(r"no such command '([^']+)'", re.IGNORECASE)


def refusal(path: str, message: str, option: str | None) -> ConfigError | None:
    """The error for a verb or an option that is not built; None where there never was to be one.

    Args:
        path: of the verb that was read, "dspex run".
        message: click's. option: the one that click does not know, if it is about one.
    """
    verb = path.removeprefix("dspex").strip()
    if option is not None and option in _OPTIONS.get(verb, ()):
        return _error(f"{option} of dspex {verb}", verb)
    found = _NO_VERB.search(message)
    wanted = f"{verb} {found[1]}".strip() if found else ""
    return _error(f"dspex {wanted}", verb) if wanted in _VERBS else None


def _error(what: str, verb: str) -> ConfigError:
    return ConfigError(f"{what} is not built in this version", code=CODE, fix=f"see dspex {verb}".rstrip() + " -h")
