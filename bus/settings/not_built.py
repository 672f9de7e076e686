"""What the design describes and this version lacks: settings, options, operators, methods and verbs, each listed once.

Who uses one is told that it is not built, and not that it is a spelling mistake; accepted and ignored it would be false safety.
The list is here because every room may read this one. When something is built, its name is taken out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Final, Never

CODE: Final = "DX108"
"""The code of settings and of the command line."""
TOPOLOGY_CODE: Final = "DX237"
"""The code of operators and their options."""

OPERATORS: tuple[str, ...] = ()
"""Methods of `Stream`, and operators in YAML."""
METHODS: Mapping[str, tuple[str, ...]] = {
    "Topology": ("to_asyncapi",),
    "Client": (),
}
"""Methods and attributes of other classes."""
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
    "telemetry.content": _LEAVE_OUT,
    "telemetry.redact": _LEAVE_OUT,
}

VERBS = frozenset(
    {
        *("ui", "mcp", "skills"),
        *("bench call", "bench stream", "bench pipeline", "bench ingest", "bench runs", "bench keyed"),
    }
)
VERB_OPTIONS: Mapping[str, frozenset[str]] = {
    "run": frozenset({"--profile"}),
    "dlq redrive": frozenset({"--rate"}),
    "doctor": frozenset({"--fix"}),
    "bench native": frozenset({"-c", "--cached", "--sizes", "--mixed"}),
}
"""Options by their verb."""
VERB_CHOICES: Mapping[str, frozenset[str]] = {"show": frozenset({"asyncapi"})}
"""Values of options that are a choice of words, by their verb."""


def fix_of(setting: str) -> str | None:
    """What to do about a setting that is not built; None where `setting`, a dotted key, is no such setting."""
    return next((fix for pattern, fix in SETTINGS.items() if fnmatchcase(setting, pattern)), None)


class Planned:
    """A class with methods that are planned: using one raises an error that says it is not built.

    Args:
        names: of the methods.
    """

    __slots__ = ()
    _planned: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, names: tuple[str, ...] = (), **other: Any) -> None:
        super().__init_subclass__(**other)
        cls._planned = names or cls._planned

    if not TYPE_CHECKING:  # type checkers report a name that does not exist by themselves

        def __getattr__(self, name: str) -> Never:
            kind = type(self).__name__
            said = (
                f"{kind}.{name} is not built in this version"
                if name in self._planned
                else f"{kind!r} has no attribute {name!r}"
            )
            raise AttributeError(said, name=name, obj=self)
