"""The root of the repository is the package: nothing of ours may reach the top of site-packages, and nothing be left out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FACES = ("asgi", "codecs", "errors", "metrics", "sync", "testing")
ROOMS = ("bus", "engine", "operators", "workers", "topologies")


def folders() -> set[str]:
    """Every folder of the rooms that holds Python, as a package name."""
    found = {f.parent for room in ROOMS for f in (ROOT / room).rglob("*.py")}
    return {"dspex", *(f"dspex.{folder.relative_to(ROOT).as_posix().replace('/', '.')}" for folder in found)}


def test_the_list_of_packages_equals_the_tree() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders()


def test_each_package_is_mapped_to_its_folder_and_has_an_init() -> None:
    mapped = PROJECT["tool"]["setuptools"]["package-dir"]
    assert set(mapped) == folders()
    for name, folder in mapped.items():
        assert folder == (name.removeprefix("dspex.").replace(".", "/") if name != "dspex" else ".")
        assert (ROOT / folder / "__init__.py").is_file(), f"{name} would be a namespace package"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a clean copy: setuptools would ship what an old build/ still holds."""
    source = tmp_path_factory.mktemp("source") / "any-name"
    known = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in known.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv.pop())"
    command = [sys.executable, "-W", "ignore", "-c", build, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


@pytest.mark.long
def test_the_wheel_holds_dspex_and_nothing_else_at_its_top(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dspex"}


def test_the_wheel_holds_every_module_and_data_file(wheel: zipfile.ZipFile) -> None:
    expected = {f"dspex/{f.relative_to(ROOT).as_posix()}" for room in ROOMS for f in (ROOT / room).rglob("*.py")}
    expected |= {f"dspex/{f.relative_to(ROOT).as_posix()}" for f in (ROOT / "topologies").rglob("*.yaml")}
    expected |= {f"dspex/{f.relative_to(ROOT).as_posix()}" for f in (ROOT / "topologies").rglob("*.jsonl")}
    expected |= {f"dspex/{f.relative_to(ROOT).as_posix()}" for f in (ROOT / "engine/gateway/web").iterdir() if f.is_file()}
    expected |= {"dspex/engine/cli/server/agents/SKILL.md"}
    expected |= {f"dspex/{name}" for name in ("__init__.py", "__main__.py", "py.typed", *(f"{face}.py" for face in FACES))}
    held = {name for name in wheel.namelist() if name.startswith("dspex/")}
    assert held == expected


def test_the_wheel_carries_the_license_and_the_command(wheel: zipfile.ZipFile) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "dspex = dspex.__main__:main" in wheel.read(f"{info}/entry_points.txt").decode()


def locked() -> dict[str, list[Requirement]]:
    """The lines of requirements.lock by distribution: one, or several for different Pythons and platforms."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def test_the_lock_pins_every_dependency_within_the_range_that_the_project_allows() -> None:
    project = PROJECT["project"]
    asked = [*project["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    asked += [r for extra in project["optional-dependencies"].values() for r in extra if not r.startswith("dspex")]
    pins = locked()
    for requirement in map(Requirement, asked):
        lines = pins.get(canonicalize_name(requirement.name))
        assert lines, f"{requirement.name} is not in requirements.lock: run scripts/lock"
        for line in lines:
            (pin,) = line.specifier
            assert pin.operator == "==", f"{line} pins nothing"
            assert requirement.specifier.contains(pin.version), f"{line} is not {requirement}: run scripts/lock"


def test_the_lock_names_no_index_to_fetch_from() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()
