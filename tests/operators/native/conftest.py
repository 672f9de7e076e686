"""The real DSPy, to compare with."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest


@pytest.fixture(scope="session")
def dspy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The installed DSPy, quiet, and with its cache in a folder of the test's."""
    os.environ.setdefault("DSPY_CACHEDIR", str(tmp_path_factory.mktemp("dspy")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("dspy")
