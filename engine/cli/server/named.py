"""What settings name that can only be looked for: folders, modules of programs, and topologies with their nodes."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dspex.bus import subjects
from dspex.bus.errors import Problem
from dspex.bus.settings.called.together import problem_at
from dspex.bus.settings.similar import did_you_mean

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings


def missing_here(settings: Settings) -> Iterator[Problem]:
    """Folders and modules that are not on this machine. `path` must be on `sys.path`. Nothing is imported.

    That of a module is a warning, since the pool may run elsewhere. Of one with an interpreter of its own only that could say:
    `dspex check --live`.
    """
    for folder in settings.path:
        if not (settings.root / folder).is_dir():
            yield _problem(settings, "path", f"there is no folder {folder!r}", "make it, or leave it out")
    for name, pool in settings.pools.items():
        for pattern in pool.programs if pool.python is None else ():
            module = pattern.partition(":")[0]
            if not any(c in module for c in "*?[") and not _is_there(module):
                said = f"{pattern!r}: there is no module {module!r} here"
                fix = "correct it, install the module, or put its folder on path"
                yield replace(_problem(settings, f"pools.{name}.programs", said, fix), level="warning")


def no_topology(settings: Settings, calls: Mapping[str, Collection[str]]) -> Iterator[Problem]:
    """Topologies and nodes that there are not. `calls`: the recorded nodes by topology, of all that there are."""
    for name, budget in settings.budgets.items():
        if budget.topology is not None and budget.topology not in (*calls, subjects.SUBMITTED):
            said = f"there is no topology {budget.topology!r}, so the budget would never count anything"
            yield _problem(settings, f"budgets.{name}.topology", said, did_you_mean(budget.topology, calls))
    nodes = [f"{topology}/{node}" for topology, names in calls.items() for node in names]
    for name, target in settings.http.calls.items():
        if "->" not in target and target not in nodes:
            said = f"no topology has a recorded node {target!r}, so nobody could call it"
            yield _problem(settings, f"http.calls.{name}", said, did_you_mean(target, nodes))


def _is_there(module: str) -> bool:
    where: Iterable[str] | None = None
    parts = module.split(".")
    for n in range(1, len(parts) + 1):
        name = ".".join(parts[:n])
        places = None if where is None else list(where)
        spec = next((found for finder in sys.meta_path if (found := finder.find_spec(name, places)) is not None), None)
        if spec is None or (spec.submodule_search_locations is None and n < len(parts)):
            return False
        where = spec.submodule_search_locations
    return True


def _problem(settings: Settings, key: str, message: str, fix: str) -> Problem:
    return problem_at("DX105", key, settings.origins().get(key, "default"), message, fix)
