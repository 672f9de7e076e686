"""Both type checkers take `api.py`, and refuse exactly the marked lines of `must_fail.py`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = ("api.py", "must_fail.py")
Errors = dict[str, set[int]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project: our two files, with dspex on the path."""
    folder = tmp_path_factory.mktemp("typing")
    for name in FILES:
        (folder / name).write_text((HERE / name).read_text())
    (folder / "lib").mkdir()
    (folder / "lib" / "dspex").symlink_to(ROOT)
    return folder


def mypy(project: Path) -> Errors:
    (project / "mypy.ini").write_text("[mypy]\nstrict = true\nfollow_imports = silent\nmypy_path = lib\n")
    options = ["--no-error-summary", "--hide-error-context", f"--cache-dir={os.devnull}"]  # nobody would read what it remembers
    command = [sys.executable, "-m", "mypy", *options, *FILES]
    out = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=50).stdout
    found: Errors = {name: set() for name in FILES}
    for name, line, text in re.findall(r"^(\w+\.py):(\d+): error: (.*)$", out, re.MULTILINE):
        found[name].add(int(line))
        assert text
    return found


def pyright(project: Path) -> Errors:
    settings = {"include": list(FILES), "extraPaths": ["lib"], "typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (project / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    out = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=50).stdout
    found: Errors = {name: set() for name in FILES}
    for d in json.loads(out)["generalDiagnostics"]:
        if d["severity"] == "error":
            found[Path(d["file"]).name].add(d["range"]["start"]["line"] + 1)
    return found


@pytest.mark.long
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_type_checkers_accept_correct_code_and_refuse_each_wrong_line(project: Path, checker: Callable[[Path], Errors]) -> None:
    lines = (HERE / "must_fail.py").read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert checker(project) == {"api.py": set(), "must_fail.py": marked}
