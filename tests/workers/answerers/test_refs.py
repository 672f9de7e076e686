"""Refs: what a pool's allow-list lets through, and that an allowed module is no door to another one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dspex.bus.errors import ProgramError
from dspex.workers.answerers.refs import Refs

PROGRAMS = """
import os, subprocess
import json as text
from os import system, path
from subprocess import getoutput as shell
from functools import lru_cache, partial

class Draft:
    class Inner: ...
    def forward(self): ...

def run(): ...

@lru_cache
def kept(): ...

own = Draft.forward
secret = "key"
foreign = partial(system)
_private = run
"""


@pytest.fixture
def refs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refs:
    """A pool that allows `programs_here:*` and `package_here.*:*`."""
    (tmp_path / "programs_here.py").write_text(PROGRAMS)
    (tmp_path / "package_here/deep").mkdir(parents=True)
    (tmp_path / "package_here/__init__.py").write_text("from package_here.flows import Flow\nimport os\n")
    (tmp_path / "package_here/flows.py").write_text("class Flow: ...\n")
    (tmp_path / "package_here/deep/__init__.py").write_text("")
    (tmp_path / "package_here/deep/more.py").write_text("def hidden(): ...\n")
    monkeypatch.setattr(sys, "path", sys.path[:])
    return Refs("lab", ["programs_here:*", "package_here.*:*", "package_here:*"], [str(tmp_path)], lambda found: False)


@pytest.mark.parametrize("name", ["Draft", "run", "kept", "own"])
def test_what_a_module_defines_itself_is_found(refs: Refs, name: str) -> None:
    assert refs.load(f"programs_here:{name}").__module__ == "programs_here"


@pytest.mark.parametrize(
    "ref",
    [
        "programs_here:os.system", "programs_here:os", "programs_here:system", "programs_here:shell", "programs_here:path",
        "programs_here:subprocess.getoutput", "programs_here:text.loads", "programs_here:Draft.Inner",
        "programs_here:_private", "programs_here:__builtins__", "programs_here:Draft.forward.__globals__",
        "programs_here:secret", "programs_here:foreign", "programs_here:lru_cache", "programs_here:",
        "programs_here:__loader__", "programs_here:run.__class__", ":run", "programs_here", "programs_here:run:run",
        "package_here:os", "package_here:os.system", "package_here:Flow", "package_here.deep.more:hidden",
        "package_here.:Flow", "..package_here:Flow", "os:system", "builtins:eval",
    ],
)  # fmt: skip
def test_an_allowed_module_is_no_door_to_another_one(refs: Refs, ref: str) -> None:
    with pytest.raises(ProgramError):
        refs.load(ref)


def test_a_name_that_was_only_imported_is_refused_with_the_place_where_it_is_defined(refs: Refs) -> None:
    with pytest.raises(ProgramError, match="does not define Flow itself") as e:
        refs.load("package_here:Flow")
    assert "package_here.flows:Flow" in e.value.fix
    assert refs.load("package_here.flows:Flow").__name__ == "Flow"


def test_a_scan_lists_only_what_can_be_loaded(refs: Refs) -> None:
    refs.load("programs_here:run")
    listed = refs.public(sys.modules["programs_here"], "programs_here:*")
    assert listed == [f"programs_here:{name}" for name in ("Draft", "kept", "own", "run")]
    for ref in listed:
        refs.load(ref)
