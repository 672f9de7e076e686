"""What users import: the names are a promise, and importing them costs nothing until they are used."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

import dspex

PUBLIC = [
    "Client",
    "Context",
    "Duration",
    "Engine",
    "Event",
    "Field",
    "KeyedStream",
    "Record",
    "Result",
    "Retry",
    "Run",
    "Settings",
    "Signature",
    "Spec",
    "Stream",
    "Topology",
    "chain_of_thought",
    "connect",
    "predict",
    "program",
    "react",
    "run",
    "codecs",
    "errors",
    "metrics",
    "sync",
    "testing",
    "workers",
]

HEAVY = {"dspy", "litellm", "torch", "nats", "pydantic", "opentelemetry", "typer", "rich", "structlog", "asyncio"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after the code ran in a fresh interpreter."""
    tail = "\nimport json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    out = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True).stdout
    return set(json.loads(out.splitlines()[-1]))


def test_the_public_names_are_pinned() -> None:
    assert dspex.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(dspex, name) is not None
    assert name in dir(dspex)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Steam'"):
        _ = dspex.Steam


def test_importing_dspex_imports_nothing_heavy() -> None:
    assert not HEAVY & loaded_by("import dspex")


def test_the_engine_starts_without_dspy() -> None:
    """The engine knows programs by name and signature only (DESIGN.md, section 6)."""
    assert not {"dspy", "litellm", "torch"} & loaded_by("from dspex import Engine, Topology, predict, connect")


def test_the_version_is_told_before_anything_is_imported() -> None:
    code = "import sys; from dspex.__main__ import main; assert main(['--version']) == 0"
    assert not HEAVY & loaded_by(code)


def test_the_version_is_told_in_a_moment(capsys: pytest.CaptureFixture[str]) -> None:
    """Under 150 ms is the promise. What it took is printed, not asserted: a busy machine must not fail the tests."""
    command = [sys.executable, "-m", "dspex", "--version"]
    took = []
    for _ in range(3):
        start = time.perf_counter()
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        took.append(time.perf_counter() - start)
        assert out == f"dspex {dspex.__version__}\n"
    with capsys.disabled():
        sys.stderr.write(f"\ndspex --version: {min(took) * 1000:.0f} ms\n")
