"""The fixture `dspex_driver`, and histories as tests: pytest finds them wherever dspex is installed, and dspex is imported only
when a test uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dspex.engine.testing.driver import Driver

_DRIVERS = pytest.StashKey[ExitStack]()


@pytest.fixture
def dspex_driver(request: pytest.FixtureRequest) -> Iterator[Callable[..., Driver]]:
    """Makes testing drivers, which end with the test: `d = dspex_driver(topology, seed=1)` takes what `Driver` takes."""
    stack = request.node.stash[_DRIVERS] = ExitStack()

    def make(*topologies: Any, **options: Any) -> Driver:
        from dspex.engine.testing.driver import Driver

        return stack.enter_context(Driver(*topologies, **options))

    yield make
    stack.close()  # where another fixture failed, and the test did not run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """The drivers of a test end within it: what they find at their end is a failure, and no error of a fixture."""
    __tracebackhide__ = True
    stack = item.stash.get(_DRIVERS, None)
    if stack is None:
        return (yield)
    with stack:
        return (yield)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The settings of histories."""
    from dspex.engine.testing.histories import add_options

    add_options(parser)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Exported runs, where the project has folders of them."""
    from dspex.engine.testing.histories import collected

    return collected(file_path, parent)
