"""`dspex skills install` writes a guide for coding agents, and never over what somebody has written there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cli_bench import Done, in_this_process

from dspex.engine.cli.server.agents.skills import marked

PLACE = Path(".claude/skills/dspex/SKILL.md")


@pytest.fixture
def project(tmp_path: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def install(*more: str) -> Done:
    return in_this_process("--json", "skills", "install", *more)


def did(done: Done) -> str:
    assert done.code == 0, done.err
    return str(done.objects()[0]["done"])


def test_a_guide_for_agents_is_installed_where_they_look_for_it(project: Path) -> None:
    assert did(install()) == "wrote"
    text = PLACE.read_text()
    about = yaml.safe_load(text.split("---")[1])
    assert (about["name"], list(about)) == ("dspex", ["name", "description"])
    assert all(heading in text for heading in ("## Write a topology", "## Test it, without", "## Replay a run"))
    assert [path for path in project.rglob("*") if path.is_file()] == [project / PLACE]


def test_to_install_the_guide_again_changes_nothing(project: Path) -> None:
    install()
    before = PLACE.stat().st_mtime_ns
    assert did(install()) == "unchanged"
    assert PLACE.stat().st_mtime_ns == before


def test_the_guide_of_an_older_version_is_replaced(project: Path) -> None:
    PLACE.parent.mkdir(parents=True)
    PLACE.write_text(marked("an older guide\n"))
    assert did(install()) == "wrote"
    assert "an older guide" not in PLACE.read_text()


@pytest.mark.parametrize("text", ["my own notes\n", marked("a guide\n").replace("a guide", "a guide, and mine"), "\udcff"])
def test_a_guide_that_was_changed_stays_unless_forced(project: Path, text: str) -> None:
    PLACE.parent.mkdir(parents=True)
    PLACE.write_bytes(text.encode(errors="surrogateescape"))
    refused = install()
    assert (refused.code, refused.error()["code"]) == (2, "DX137")
    assert PLACE.read_bytes() == text.encode(errors="surrogateescape")
    if text != "\udcff":  # what is no text is left alone, whatever is said
        assert did(install("--force")) == "wrote"


def test_the_guide_can_be_installed_elsewhere(project: Path) -> None:
    assert did(install("--to", "skills/dspex")) == "wrote"
    assert (project / "skills/dspex/SKILL.md").exists()
    (project / "file").write_text("")
    assert json.loads(install("--to", "file/dspex").err)["error"]["code"] == "DX137"
