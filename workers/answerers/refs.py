"""Refs to a user's code (`pkg.module:Name`), taken from the pool's allow-list only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

from dspex.bus.errors import ProgramError

TRACEBACK_LIMIT = 8192  # bytes


def bounded(text: str, limit: int = TRACEBACK_LIMIT) -> str:
    """At most `limit` bytes of a text: its first quarter and its end. A traceback has the frames there, and the error."""
    raw = text.encode(errors="replace")
    if len(raw) <= limit:
        return text
    head, tail = raw[: limit // 4], raw[len(raw) - (limit - limit // 4 - 8) :]
    return f"{head.decode(errors='ignore')}\n…\n{tail.decode(errors='ignore')}"


class Refs:
    """Resolves refs in this process. `allow`: patterns like `programs:*`; `path`: folders put on sys.path."""

    def __init__(self, pool: str, allow: Sequence[str], path: Sequence[str]) -> None:
        self.pool, self.allow = pool, tuple(allow)
        for folder in reversed(path):
            if folder not in sys.path:
                sys.path.insert(0, folder)

    def load(self, ref: str) -> Any:
        """The object that `ref` names. Raises ProgramError (not allowed, not there), or whatever its module raises."""
        module, _, attribute = ref.partition(":")
        if not attribute or not any(fnmatchcase(ref, pattern) for pattern in self.allow):
            listed = ", ".join(self.allow) or "empty"
            raise ProgramError(
                f"{ref} is not in the allow-list of pool {self.pool} ({listed})",
                fix=f'allow it: pools.{self.pool}.programs = ["{module or "module"}:*"]',
                node=ref,
            )
        target: Any = importlib.import_module(module)
        for name in attribute.split("."):
            if not hasattr(target, name):
                raise ProgramError(f"{ref}: module {module} has no {attribute}", node=ref)
            target = getattr(target, name)
        return target

    def modules(self) -> list[tuple[str, str]]:
        """(pattern, module) of the patterns that name a module in full; `*:*` names none, and is imported when asked for."""
        pairs = [(pattern, pattern.partition(":")[0]) for pattern in self.allow]
        return [(pattern, name) for pattern, name in pairs if not any(c in name for c in "*?[")]


def public(module: ModuleType, pattern: str) -> list[str]:
    """Refs of what a module defines itself, does not mark as private, and the pattern allows."""
    refs = [
        f"{module.__name__}:{name}"
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return sorted(r for r in refs if fnmatchcase(r, pattern))
