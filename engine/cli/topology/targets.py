"""TARGET of the CLI: `module:attr`, a YAML file, or nothing for all of `topologies` in dspex.toml."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from dspex.bus.errors import ConfigError, DspexError, Problem, TopologyError
from dspex.engine.cli.terminal.terminal import Terminal, where_raised

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings
    from dspex.operators.topology import Topology

Targets = Annotated[
    list[str] | None,
    typer.Argument(metavar="TARGET", help="module:attr or a YAML file; all topologies of dspex.toml by default."),
]


def named(t: Terminal, given: Sequence[str] | None) -> list[str]:
    """The targets: those given, else those of the settings. Puts `path` of the settings on `sys.path`.

    Raises ConfigError (DX135) where there is none.
    """
    settings = t.settings()
    search(settings)
    found = list(given or ()) or [_placed(settings, target) for target in settings.topologies]
    if not found:
        raise ConfigError(
            "no topology is named, and the settings name none either",
            code="DX135",
            fix='dspex init makes one; or name it here (triage:topology, triage.yaml) or in dspex.toml: topologies = ["…"]',
        )
    return found


def search(settings: Settings) -> None:
    """Put `path` of the settings on `sys.path`."""
    for folder in reversed(settings.search_path):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def _placed(settings: Settings, target: str) -> str:
    """A file that the settings name lies beside them, wherever the command is typed."""
    return str(settings.root / target) if target.endswith((".yaml", ".yml")) else target


def load_one(target: str) -> Topology:
    """The topology of a target, frozen or not. Raises TopologyError, with DX221 where it cannot be imported."""
    from dspex.operators.topology import Topology  # here: `dspex --help` does not import it

    with importing(target):
        return Topology.load(target)


@contextmanager
def importing(target: str) -> Generator[None, None, None]:
    """Import what a user has written. Raises TopologyError (DX221) for whatever it raises."""
    try:
        yield
    except DspexError:
        raise
    except (Exception, SystemExit) as e:  # the user's module runs while it is imported, and may raise anything, or exit with 0
        where = "" if isinstance(e, SyntaxError) else where_raised(e)  # a syntax error says so itself
        message = f"{target!r} cannot be imported: {type(e).__name__}: {e}{where}"
        raise TopologyError(message, code="DX221", fix="correct the module; -v shows where") from e


def load(t: Terminal, given: Sequence[str] | None) -> list[Topology]:
    """The frozen topologies of the targets. Raises one TopologyError with the problems of all of them, ConfigError."""
    loaded: dict[str, Topology] = {}
    problems: list[Problem] = []
    for target in named(t, given):
        try:
            topology = load_one(target)
            graph = topology.graph
        except TopologyError as e:
            problems += e.problems or [Problem(e.code, "error", "", e.node or target, None, None, e.message, e.fix)]
            continue
        if graph.name in loaded:
            message, fix = f"two topologies are called {graph.name}", "give one of them another name"
            problems.append(Problem("DX201", "error", graph.name, target, graph.file, None, message, fix))
        loaded[graph.name] = topology
    if problems:
        text = "\n".join(f"{p.place}: {p.message}" for p in problems)
        raise TopologyError(text, code=problems[0].code, fix=problems[0].fix, node=problems[0].node, problems=problems)
    return list(loaded.values())
