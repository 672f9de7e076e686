"""What the design describes and this version lacks: settings, options, operators and verbs, each listed once.

Who uses one is told that it is not built, and not that it is a spelling mistake; accepted and ignored it would be false safety.
The list is here because every room may read this one. When something is built, its name is taken out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

CODE: Final = "DX108"
"""The code of settings and of the command line."""
TOPOLOGY_CODE: Final = "DX237"
"""The code of operators and their options."""

OPERATORS: tuple[str, ...] = ()
"""Methods of `Stream`, and operators in YAML."""
NAMES = ("StateContext",)
"""What users will import from dspex and its modules."""
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "call": (),
    "source": ("codec",),
}
"""Options in topologies, by what takes them. "call" stands for every recorded operator."""
CHOICES: Mapping[str, tuple[str, ...]] = {}
"""Values of call options that are a choice of words."""

_LEAVE_OUT = "leave it out"
SETTINGS: Mapping[str, str] = {  # pattern of a dotted key → the fix
    "engine.commit.max_wait": _LEAVE_OUT,
    "defaults.call.inputs": "set it at the operator whose inputs they are",
    "defaults.call.tenant": "set it at the operator whose data says whose call it is",
    "defaults.call.fallback": "set it at the operator whose outputs it gives",
    "defaults.call.lane": "set it at the operators that can wait for a day",
    **{f"defaults.call.{option}": _LEAVE_OUT for option in OPTIONS["call"]},
}

VERBS = frozenset(
    {
        *("bench call", "bench stream", "bench pipeline", "bench ingest", "bench runs", "bench keyed"),
    }
)
VERB_OPTIONS: Mapping[str, frozenset[str]] = {
    "dlq redrive": frozenset({"--rate"}),
    "doctor": frozenset({"--fix"}),
    "bench native": frozenset({"-c", "--cached", "--sizes", "--mixed"}),
}
"""Options by their verb."""


def fix_of(setting: str) -> str | None:
    """What to do about a setting that is not built; None where `setting`, a dotted key, is no such setting."""
    return next((fix for pattern, fix in SETTINGS.items() if fnmatchcase(setting, pattern)), None)
