"""DSPy as an answerer that is imported when it is first needed: importing it takes seconds and much memory."""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from dspex.bus.errors import ConfigError
from dspex.bus.records import Outputs
from dspex.operators.native.prompts import versions
from dspex.workers.answerers.attempt import Attempt
from dspex.workers.config import PoolConfig

if TYPE_CHECKING:
    from dspex.workers.dspy.programs import Programs


class LazyDspy:
    """Answers every call that may be answered by DSPy.

    Imports DSPy in a thread, so that other calls go on meanwhile; at the start where the pool names programs, because only
    DSPy runs those. Raises ConfigError (DX134) where DSPy is needed and this Python has none.
    """

    route = "worker"

    def __init__(self, pool: PoolConfig) -> None:
        self._pool = pool
        self._programs: Programs | None = None
        self._module: ModuleType | ImportError | None = None
        self._importing = asyncio.Lock()
        self._installed = versions.installed() or ""
        if pool.programs:
            self._programs = self._make(_import(), "the pool has programs")

    @property
    def dspy_version(self) -> str:
        return self._programs.dspy_version if self._programs else self._installed

    def scan(self) -> tuple[list[str], dict[str, str]]:
        """What the pool's allow-list names: (refs found, why the rest failed by pattern)."""
        return self._programs.scan() if self._programs else ([], {})

    def refuses(self, attempt: Attempt) -> str | None:
        return 'its route is "native"' if attempt.spec.route == "native" else None

    async def ask(self, attempt: Attempt) -> Outputs:
        programs = self._programs or await self._load("; ".join(attempt.refusals))
        attempt.dspy_version = programs.dspy_version
        return await programs.ask(attempt)

    async def close(self) -> None:
        """Nothing is open: DSPy keeps its own connections."""

    async def _load(self, why: str) -> Programs:
        """The programs, imported by the first call that needs them; the others wait for it too."""
        async with self._importing:
            if self._module is None:
                self._module = await asyncio.to_thread(_import)
            if self._programs is None:
                self._programs = self._make(self._module, why)
        return self._programs

    def _make(self, module: ModuleType | ImportError, why: str) -> Programs:
        if isinstance(module, ImportError):
            raise ConfigError(
                f"pool {self._pool.name}: {sys.executable} cannot run DSPy programs: {module}; DSPy is needed because {why}",
                code="DX134",
                fix="pip install 'dspex[dspy]' in that environment",
                node=self._pool.name,
            ) from module
        made: Programs = module.Programs(self._pool)
        return made


def _import() -> ModuleType | ImportError:
    """The module that imports DSPy; the error where it cannot be imported."""
    try:
        return importlib.import_module("dspex.workers.dspy.programs")
    except ImportError as error:
        return error
