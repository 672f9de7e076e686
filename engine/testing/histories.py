"""Histories as tests: pytest collects each exported run of a folder, and does it again with the topology of today.

[tool.pytest.ini_options]
dspex_histories = "tests/runs"          # *.jsonl, as `dspex runs export RUN -o FILE` writes them
dspex_topologies = ["triage:topology"]
dspex_harmless = ["urgency"]            # fields that may differ
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ENDS = ".jsonl"


def add_options(parser: pytest.Parser) -> None:
    """The settings of it, in the file that configures pytest."""
    parser.addini("dspex_histories", "folders with runs that were exported, which are replayed", "paths", [])
    parser.addini("dspex_topologies", "what they are replayed with: module:attr", "args", [])
    parser.addini("dspex_harmless", "fields that may differ from what they were", "args", [])


def collected(file: Path, parent: pytest.Collector) -> HistoryFile | None:
    """What a file is to pytest; None where it is none of ours."""
    folders = [folder.resolve() for folder in parent.config.getini("dspex_histories")]
    if file.suffix != ENDS or not any(folder in file.resolve().parents for folder in folders):
        return None
    return HistoryFile.from_parent(parent, path=file)


class HistoryFile(pytest.File):
    """One exported run."""

    def collect(self) -> Iterator[pytest.Item]:
        """It is one test."""
        yield HistoryItem.from_parent(self, name=self.path.stem)


class HistoryDiffers(Exception):
    """A run ends otherwise than it did. The text is the diff."""


class HistoryItem(pytest.Item):
    """Does the run again, and fails with the diff."""

    def runtest(self) -> None:
        """See the module."""
        from dspex.engine.again.files import replayed
        from dspex.engine.graph.graph import graphs_of

        named = self.config.getini("dspex_topologies")
        if not named:
            raise pytest.UsageError('dspex_histories needs what runs are replayed with: dspex_topologies = ["module:attr"]')
        found = replayed(graphs_of([_topology(one) for one in named]), self.path, self.config.getini("dspex_harmless"))
        if not found.same:
            raise HistoryDiffers(str(found.diff))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any, **options: Any) -> Any:
        """The diff alone: where in dspex it was made tells nobody anything."""
        from dspex.bus.errors import DspexError

        said = isinstance(excinfo.value, (HistoryDiffers, DspexError))
        return str(excinfo.value) if said else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where it is."""
        return self.path, 0, f"run {self.name}"


def _topology(named: str) -> Any:
    """What `module:attr` names. Raises UsageError."""
    module, _, attribute = named.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise pytest.UsageError(f"dspex_topologies: {named!r} cannot be imported ({error}): give module:attr") from error
