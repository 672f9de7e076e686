"""`dspex doctor`: what is written here, or is not: settings and topologies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dspex.bus.errors import DspexError
from dspex.bus.settings.files import find_file
from dspex.engine.cli.server.diagnosis import Diagnosis, fault
from dspex.engine.cli.terminal.client import count, shown
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.engine.cli.topology.check import problems_of
from dspex.engine.cli.topology.targets import named


def written(t: Terminal) -> Iterator[Diagnosis]:
    """Which settings there are, and each topology that they name."""
    settings = t.settings()
    file = Path(t.config) if t.config else find_file(Path.cwd())
    where = f"from {shown(file)}" if file is not None else "no dspex.toml was found here or above, so the defaults are used"
    yield Diagnosis("settings", True, f"{where}; app {settings.app}")
    if not settings.topologies:
        yield Diagnosis("topologies", True, "the settings name none: run, check and apply need one to be named")
        return
    try:
        targets = named(t, None)
    except DspexError as e:
        yield fault("topologies", e)
        return
    for target in targets:
        name = shown(Path(target)) if Path(target).is_absolute() else target
        topology, problems = problems_of(t, target)
        wrong = [p for p in problems if p.level == "error"]
        if topology is None or wrong:
            said = f"{name}: {wrong[0].message}" + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")
            yield Diagnosis("topologies", False, said, wrong[0].fix if len(wrong) == 1 else "dspex check shows all of them")
        else:
            warned = f", {count(len(problems), 'warning')}: dspex check" if problems else ""
            nodes = count(len(topology.graph.nodes), "node")
            yield Diagnosis("topologies", True, f"{name}: {topology.name}, {nodes}{warned}")
