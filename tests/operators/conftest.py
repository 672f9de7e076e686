"""A tiny collecting context: operators are run by their steps, without an engine."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest

from dspex.bus.message import Event
from dspex.engine.graph.context import Build


class Walk:
    """A context, and what came out of each outlet."""

    def __init__(self) -> None:
        self.event: Event[Any] = Event(
            id="0198f3aa-0000-7000-8000-000000000001",
            subject="in",
            data=None,
            time=datetime(2026, 1, 1, tzinfo=UTC),
            run="r",
            key="k1",
            session="s1",
            headers={"Tenant": "acme"},
        )
        self.now, self.key, self.session, self.log = self.event.time, "k1", "s1", None
        self.random = random.Random(1)
        self.out: list[list[Any]] = []

    def uuid(self) -> UUID:
        return UUID(int=1)

    def run(self, build: Build, *data: Any, outlets: int = 1) -> Any:
        """Send data through an operator; a list for one outlet, a list of lists for several."""
        self.out = [[] for _ in range(outlets)]
        step = build([lambda d, c, o=o: o.append(d) for o in self.out])
        for d in data:
            step(d, self)
        return self.out[0] if outlets == 1 else self.out


@pytest.fixture
def walk() -> Walk:
    return Walk()


@pytest.fixture
def run(walk: Walk) -> Callable[..., Any]:
    return walk.run


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """Write a module of the user's and import it; the working directory is where it lies."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made: list[str] = []

    def make(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        return __import__(name)

    yield make
    for name in made:
        sys.modules.pop(name, None)
