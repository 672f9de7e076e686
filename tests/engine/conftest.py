"""Engines for tests; most of it is in engine_lab.py, which tests import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cli_bench import native  # noqa: F401 - a fixture of the tests of the CLI
from engine_lab import Lab
from real_nats import bus, js  # noqa: F401 - fixtures of the tests on a real server


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
