"""DSPy as an answerer that is imported when it is first needed: importing it takes seconds and much memory."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from dspex.bus.errors import ConfigError
from dspex.bus.records import Outputs
from dspex.operators.native.prompts import versions
from dspex.workers.answerers.attempt import Attempt
from dspex.workers.answerers.refs import Refs
from dspex.workers.config import PoolConfig

if TYPE_CHECKING:
    from dspex.workers.dspy.programs import Programs


class LazyDspy:
    """Answers every call that may be answered by DSPy.

    Imports DSPy in a thread, so that other calls go on meanwhile; at the start where the pool's code needs it, which has been
    imported by then. Raises ConfigError (DX134) where DSPy is needed and this Python has none.
    """

    route = "worker"

    def __init__(self, pool: PoolConfig, refs: Refs, failed: Mapping[str, BaseException]) -> None:
        """`failed`: why code of the pool could not be imported."""
        self._pool, self._refs = pool, refs
        self._programs: Programs | None = None
        self._module: ModuleType | ImportError | None = None
        self._importing = asyncio.Lock()
        self._installed = versions.installed() or ""
        if needed_at_start(pool, refs, failed):
            self._programs = self._make(_import(), "the pool has programs")

    @property
    def dspy_version(self) -> str:
        return self._programs.dspy_version if self._programs else self._installed

    def refuses(self, attempt: Attempt) -> str | None:
        return 'its route is "native"' if attempt.spec.route == "native" else None

    async def ask(self, attempt: Attempt) -> Outputs:
        programs = self._programs or await self._load("; ".join(attempt.refusals))
        attempt.dspy_version = programs.dspy_version
        return await programs.ask(attempt)

    async def describe(self, attempt: Attempt) -> Outputs:
        """What the program of a call is made of."""
        programs = self._programs or await self._load("it describes what programs are made of")
        attempt.dspy_version = programs.dspy_version
        return programs.describe(attempt)

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
        made: Programs = module.Programs(self._pool, self._refs)
        return made


def needed_at_start(pool: PoolConfig, refs: Refs, failed: Mapping[str, BaseException]) -> bool:
    """Whether the code of the pool, which has been imported, needs DSPy. `failed`: why some of it could not be."""
    unseen = len(refs.modules()) < len(pool.programs)  # modules named by a wildcard are imported when they are asked for
    lacking = any(isinstance(e, ModuleNotFoundError) and e.name == "dspy" for e in failed.values())
    return unseen or lacking or "dspy" in sys.modules


def _import() -> ModuleType | ImportError:
    """The module that imports DSPy; the error where it cannot be imported."""
    try:
        return importlib.import_module("dspex.workers.dspy.programs")
    except ImportError as error:
        return error
