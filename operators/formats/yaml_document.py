"""A topology file that is being read: its sections, and every problem with its line."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, cast

from dspex.bus.errors import TopologyError
from dspex.engine.graph.nodes import SourceLine
from dspex.operators.formats.yaml_read import VERSION, Mapped, read
from dspex.operators.native.problems import did_you_mean, problem
from dspex.operators.parameters.parameter import unknown
from dspex.operators.parameters.typed import type_of
from dspex.operators.plan import Plan, shorten


@dataclass
class Document:
    """One file, and what is being read of it.

    Attributes:
        plan: takes the problems.
        types: of the section `types:`.
        what: what is being read, as messages call it; about: its name, if it is a node, a source or a sink.
    """

    plan: Plan
    path: str
    document: Mapped
    _: KW_ONLY
    types: dict[str, Any] = field(default_factory=dict[str, Any])
    what: str = ""
    about: str | None = None

    # -- places and problems
    def place(self, line: int) -> SourceLine:
        return SourceLine(shorten(os.path.abspath(self.path)), line)

    @contextmanager
    def reading(self, line: int, what: str | None = None, about: str | None = None) -> Generator[None]:
        """What the block builds or reports is of this line. `what` and `about`: of something else than before."""
        outer = self.plan.at, self.what, self.about
        self.plan.at = self.place(line)
        if what is not None:
            self.what, self.about = what, about
        try:
            yield
        finally:
            self.plan.at, self.what, self.about = outer

    def report(self, code: str, message: str, fix: str, line: int | None = None) -> None:
        """Note a problem of what is being read. `line`: another one than its own."""
        place = None if line is None else self.place(line)
        self.plan.report(None, code, message, fix, place=place, node=self.about)

    @contextmanager
    def reporting(self) -> Generator[None]:
        """Note the problems that the block raises, and go on."""
        try:
            yield
        except TopologyError as e:
            for p in e.problems or (e,):
                self.report(p.code, p.message, p.fix)

    # -- sections
    def head(self, keys: tuple[str, ...]) -> None:
        """Check the keys of the document and its version, and read its types."""
        for key in self.document:
            if key not in keys:
                self.report("DX204", f"there is no key {key!r} here", did_you_mean(key, keys), self.document.at(key))
        version = self.document.get("dspex")
        if version != VERSION:
            message = f"dspex: {version!r} is not a version this dspex reads"
            self.report("DX204", message, "dspex: 1", self.document.at("dspex"))
        section = self.section("types")
        for name, ref in section.items():
            with self.reading(section.at(name)), self.reporting():
                self.types[name] = type_of(ref, {})

    def section(self, key: str) -> Mapped:
        """A mapping of the document; empty where it is missing or something else."""
        found = self.document.get(key)
        if isinstance(found, Mapped):
            return found
        if found is not None:
            self.report("DX204", f"{key} is a mapping, and this is {found!r}", f"{key}: {{ ... }}", self.document.at(key))
        return Mapped(self.document.at(key))

    def options(self, value: object, allowed: Collection[str], not_built: Collection[str] = ()) -> dict[str, object]:
        """A mapping's known keys; unknown ones are reported."""
        if not isinstance(value, Mapped):
            if value is not None:
                self.report("DX204", f"{self.what} is a mapping, and this is {value!r}", "{ from: ... }")
            return {}
        for key in value:
            if key not in allowed:
                e = unknown(key, allowed, f"{self.what} has", not_built)
                self.report(e.code, e.message, e.fix, value.at(key))
        return {k: _plain(v) for k, v in value.items() if k in allowed}


def read_file(path: str) -> Mapped:
    """The document. Raises TopologyError: DX221 (no such file), DX222 (not YAML, a key twice, aliases)."""
    try:
        with open(path, encoding="utf-8") as f:
            return read(f.read(), shorten(os.path.abspath(path)))
    except OSError as e:
        raise problem("DX221", f"{path} cannot be read: {e}", "correct the path") from e
    except UnicodeDecodeError as e:
        raise problem("DX222", f"{path} is not text in UTF-8: {e.reason} at byte {e.start}", "save it as UTF-8") from e


def _plain(value: Any) -> Any:
    """The value without its lines: what the fluent API would have been given."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in cast("dict[str, Any]", value).items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value
