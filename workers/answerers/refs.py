"""Refs to a user's code (`pkg.module:Name`), taken from the pool's allow-list only."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from dspex.bus.errors import DspexError, ProgramError
from dspex.bus.settings.called.refs import allows, not_allowed

TRACEBACK_LIMIT = 8192  # bytes


def bounded(text: str, limit: int = TRACEBACK_LIMIT) -> str:
    """At most `limit` bytes of a text: its first quarter and its end. A traceback has the frames there, and the error."""
    raw = text.encode(errors="replace")
    if len(raw) <= limit:
        return text
    head, tail = raw[: limit // 4], raw[len(raw) - (limit - limit // 4 - 8) :]
    return f"{head.decode(errors='ignore')}\n…\n{tail.decode(errors='ignore')}"


class Refs:
    """Resolves refs in this process.

    A ref names what its module itself defines, one level deep. Walking on to `programs:dspy.clients.os.system`, or to what a
    module only imported, would make every allowed module a door to all the others.

    Args:
        allow: patterns like `programs:*`; a wildcard crosses no dot.
        path: folders put on sys.path.
        is_program: whether an object of a foreign class may be named, as `qa = dspy.Predict("question -> answer")`.
    """

    def __init__(
        self, pool: str, allow: Sequence[str], path: Sequence[str], is_program: Callable[[object], bool] | None = None
    ) -> None:
        self.pool, self.allow, self._is_program = pool, tuple(allow), is_program or _of_dspy
        for folder in reversed(path):
            if folder not in sys.path:
                sys.path.insert(0, folder)

    def load(self, ref: str) -> Any:
        """The object that `ref` names. Raises ProgramError: it is not allowed, not there, or its module cannot be imported."""
        module, _, name = ref.partition(":")
        if not allows(self.allow, ref):
            why, fix = not_allowed(self.pool, self.allow, ref)
            raise ProgramError(why, fix=fix, node=ref)
        if not all(part.isidentifier() for part in (*module.split("."), name)) or name.startswith("_"):
            raise ProgramError(f"{ref} does not name a public object of a module", fix="write module:Name", node=ref)
        found = _imported(ref, module)
        if name not in vars(found):
            raise ProgramError(f"{ref}: module {module} has no {name}", node=ref)
        target = vars(found)[name]
        if not self._defines(found, target):
            home = getattr(target, "__module__", None)
            fix = f"define it there, or name where it is defined: {home}:{name}" if home else "name a class or a function"
            raise ProgramError(f"{ref}: module {module} does not define {name} itself", fix=fix, node=ref)
        return target

    def _defines(self, module: ModuleType, value: object) -> bool:
        if not callable(value):
            return False
        return getattr(value, "__module__", None) == module.__name__ or self._is_program(value)

    def modules(self) -> list[tuple[str, str]]:
        """(pattern, module) of the patterns that name a module in full; `*:*` names none, and is imported when asked for."""
        pairs = [(pattern, pattern.partition(":")[0]) for pattern in self.allow]
        return [(pattern, name) for pattern, name in pairs if not any(c in name for c in "*?[")]

    def scan(self) -> tuple[list[str], dict[str, BaseException]]:
        """What the allow-list names: (refs found, why the rest failed by pattern). Imports the modules it names in full."""
        found: list[str] = []
        failed: dict[str, BaseException] = {}
        for pattern, module in self.modules():
            try:
                found += [r for r in self.public(importlib.import_module(module), pattern) if r not in found]
            except (Exception, SystemExit) as error:  # noqa: BLE001  a module may raise anything; the others are served
                failed[pattern] = error
        return found, failed

    def public(self, module: ModuleType, pattern: str) -> list[str]:
        """Refs of what a module defines and the pattern allows."""
        named = [name for name, value in vars(module).items() if not name.startswith("_") and self._defines(module, value)]
        return sorted(ref for name in named if allows([pattern], ref := f"{module.__name__}:{name}"))

    @staticmethod
    def digest_of(target: object) -> str:
        """12 hex digits of the file that a class or function stands in."""
        path = getattr(inspect.getmodule(target), "__file__", None) or ""
        try:
            with open(path, "rb") as f:
                return hashlib.sha256(f.read()).hexdigest()[:12]
        except OSError:
            return "unknown"


def _imported(ref: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except DspexError:
        raise
    except (Exception, SystemExit) as error:
        raise ProgramError(
            f"{ref} cannot be imported: {type(error).__name__}: {error}",
            fix="install what it needs in the pool's environment, or put its folder on path in dspex.toml",
            node=ref,
        ) from error


def _of_dspy(found: object) -> bool:
    """Whether it is a program or a tool of DSPy. Where nobody has imported DSPy, nothing is."""
    dspy = sys.modules.get("dspy")
    return dspy is not None and isinstance(found, (dspy.Module, dspy.Tool))
