"""scripts/pin_images.py, with a stand-in for docker: what a registry answers comes from a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_cover  # it runs none of our code
SCRIPT = Path(__file__).parents[2] / "scripts/pin_images.py"
DOCKER = """#!/bin/sh
[ "$1 $2 $3 $4 $5" = "buildx imagetools inspect --format {{json .Manifest}}" ] || exit 2
cat "$(dirname "$0")/$(echo "$6" | tr ':/' '__')" 2>/dev/null || { echo "$6: not found" >&2; exit 1; }
"""
BEFORE = f"FROM nats:2.1-alpine AS nats\nCMD a\n\nFROM ghcr.io/x/python:3.1-slim@sha256:{'c' * 64} AS dspex\nUSER 1000:1000\n"


@pytest.fixture
def dockerfile(tmp_path: Path) -> Path:
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    answers(
        tmp_path,
        "nats_2.1-alpine",
        f'{{"mediaType": "index", "digest": "sha256:{"a" * 64}", "manifests": [{{"digest": "b"}}]}}',
    )
    answers(tmp_path, "ghcr.io_x_python_3.1-slim", f'{{"digest": "sha256:{"b" * 64}"}}')
    file = tmp_path / "Dockerfile"
    file.write_text(BEFORE)
    return file


def answers(folder: Path, image: str, text: str) -> None:
    (folder / image).write_text(text)


def run(dockerfile: Path, *more: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{dockerfile.parent}:/usr/bin:/bin"}
    return subprocess.run([sys.executable, SCRIPT, dockerfile, *more], env=env, capture_output=True, text=True)


def test_every_base_image_gets_its_digest_also_where_there_was_another(dockerfile: Path) -> None:
    for _ in range(2):
        done = run(dockerfile)
        assert done.returncode == 0, done.stderr
        assert dockerfile.read_text() == BEFORE.replace("alpine", f"alpine@sha256:{'a' * 64}").replace("c" * 64, "b" * 64)


@pytest.mark.parametrize("answer", ["", "Name: nats\nDigest: sha256:aa", "[]", '{"digest": "sha256:aa"}', '{"digest": null}'])
def test_an_answer_without_a_digest_changes_nothing(dockerfile: Path, answer: str) -> None:
    answers(dockerfile.parent, "ghcr.io_x_python_3.1-slim", answer)
    done = run(dockerfile)
    assert (done.returncode, dockerfile.read_text()) == (1, BEFORE)
    assert "no digest in the answer" in done.stderr


def test_an_image_that_is_not_there_is_named_and_changes_nothing(dockerfile: Path) -> None:
    (dockerfile.parent / "nats_2.1-alpine").unlink()
    done = run(dockerfile)
    assert (done.returncode, dockerfile.read_text()) == (1, BEFORE)
    assert "nats:2.1-alpine: not found" in done.stderr


def test_an_image_of_a_compose_file_gets_its_digest_and_one_that_is_built_here_none(dockerfile: Path, tmp_path: Path) -> None:
    compose = tmp_path / "compose.yml"
    text = "  a:\n    image: dspex-nats\n  b:\n    image: prom/x:v3.7.3\n    profiles: [m]\n"
    compose.write_text(text)
    assert run(dockerfile, compose).returncode == 1
    assert (dockerfile.read_text(), compose.read_text()) == (BEFORE, text), "where one is not there, no file is changed"
    answers(tmp_path, "prom_x_v3.7.3", f'{{"digest": "sha256:{"d" * 64}"}}')
    assert run(dockerfile, compose).returncode == 0
    assert compose.read_text() == text.replace("v3.7.3", f"v3.7.3@sha256:{'d' * 64}")
