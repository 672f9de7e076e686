"""What users import: the names are a promise, and importing them costs nothing until they are used."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dspex

PUBLIC = [
    "Chunk",
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
    "Session",
    "Settings",
    "Signature",
    "Spec",
    "Stream",
    "Topology",
    "Windowed",
    "WindowedStream",
    "chain_of_thought",
    "connect",
    "enrich",
    "gather",
    "predict",
    "program",
    "react",
    "run",
    "asgi",
    "codecs",
    "errors",
    "metrics",
    "sync",
    "testing",
    "workers",
]

FACES = {
    "asgi": "dspex.engine.gateway.app",
    "codecs": "dspex.bus.codecs",
    "errors": "dspex.bus.errors",
    "metrics": "dspex.operators.native.metrics.metrics",
    "sync": "dspex.engine.client.sync",
    "testing": "dspex.engine.testing.driver",
}

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
    """The engine knows programs by name and signature only."""
    assert not {"dspy", "litellm", "torch"} & loaded_by("from dspex import Engine, Topology, predict, connect")


def test_a_process_that_runs_calls_begins_without_what_only_others_need() -> None:
    """Each pool starts one: each of these would cost it a tenth of a second, DSPy a whole one."""
    assert not {"dspy", "rich", "pygments", "aiohttp", "nats", "psutil"} & loaded_by("import dspex.workers.child.zygote")


def test_the_version_is_printed_before_anything_is_imported() -> None:
    code = "import sys; from dspex.__main__ import main; assert main(['--version']) == 0"
    assert not HEAVY & loaded_by(code)


@pytest.mark.parametrize("name", ["asgi", "codecs", "errors", "metrics", "sync", "testing"])
def test_each_public_module_exports_only_its_public_names(name: str) -> None:
    face = importlib.import_module(f"dspex.{name}")
    assert face is getattr(dspex, name)
    behind = importlib.import_module(FACES[name])
    assert {n for n in vars(face) if not n.startswith("_")} == set(behind.__all__)


def test_type_checkers_and_the_interpreter_see_the_same_public_names() -> None:
    """The names under TYPE_CHECKING are a second list of where each name lives: it must not go its own way."""
    tree = ast.parse(Path(dspex.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    seen = {alias.asname: n.module for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    loaded = {name: f"dspex.{home}" for name, home in dspex._HOMES.items()} | dict.fromkeys(dspex._MODULES, "dspex")
    assert seen == loaded
