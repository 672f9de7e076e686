"""Engines for tests; most of it is in engine_lab.py, which tests import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent)]  # pytest's importlib mode puts no folder of tests on the path

from cli_bench import native  # noqa: E402, F401 - a fixture of the tests of the CLI
from engine_lab import Lab  # noqa: E402


@pytest.fixture
def lab() -> Iterator[Callable[..., Lab]]:
    """Makes labs, and closes them."""
    made: list[Lab] = []

    def make(*args: Any, **kw: Any) -> Lab:
        made.append(Lab(*args, **kw))
        return made[-1]

    yield make
    for one in made:
        one.close()
