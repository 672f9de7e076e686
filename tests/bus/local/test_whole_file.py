"""Files that are written whole, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from dspex.bus.local.whole_file import check, write, write_all

# It stops where the new file is to get its name, says so, and waits for a word.
STOPS = """
import sys
from dspex.bus.local.whole_file import write

def hook(event, of):
    if event == "os.rename":
        print("written", flush=True)
        sys.stdin.readline()

sys.addaudithook(hook)
write(sys.argv[1], b"after")
"""


@contextmanager
def writing(path: Path) -> Generator[subprocess.Popen[bytes]]:
    """A process that has written a file which has not got its name yet."""
    command = [sys.executable, "-c", STOPS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            yield process
        finally:
            process.kill()


def test_a_file_that_cannot_be_written_whole_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, b"before")
    with pytest.raises(TypeError):
        write(path, cast(bytes, None))
    assert ([one.name for one in tmp_path.iterdir()], path.read_bytes()) == (["run.jsonl"], b"before")
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(path)
    write(link, b"after")
    assert (link.is_symlink(), path.read_bytes()) == (True, b"after")
    os.mkfifo(pipe)
    with open(os.open(pipe, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0) as reader:
        write(pipe, b"read")
        assert reader.read(4) == b"read"


def test_a_process_that_is_killed_leaves_what_was_there_and_the_next_one_removes_what_it_left(tmp_path: Path) -> None:
    path, other = tmp_path / "run.jsonl", tmp_path / "other.jsonl"
    write(path, b"before")
    with writing(path) as process:
        process.kill()
    assert path.read_bytes() == b"before"
    assert len([*tmp_path.iterdir()]) == 2
    write_all({other: b"other"})
    assert sorted(tmp_path.iterdir()) == [other, path]


def test_what_a_living_process_writes_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with writing(path) as process:
        write(path, b"before")
        process.communicate(b"\n")
        assert process.returncode == 0
    assert ([*tmp_path.iterdir()], path.read_bytes()) == ([path], b"after")


def test_a_file_keeps_its_rights_and_a_new_one_has_those_that_are_named(tmp_path: Path) -> None:
    path, secret = tmp_path / "run.jsonl", tmp_path / "password"
    path.write_bytes(b"before")
    path.chmod(0o640)
    write(path, b"after")
    write(secret, b"1234", mode=0o600)
    assert [one.stat().st_mode & 0o777 for one in (path, secret)] == [0o640, 0o600]


def test_whether_a_file_could_be_written_is_told_and_nothing_is_made_of_it(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"before")
    check(path)
    check(tmp_path / "new.jsonl")
    assert ([*tmp_path.iterdir()], path.read_bytes()) == ([path], b"before")
    for wrong in (tmp_path, tmp_path / "none" / "run.jsonl"):
        with pytest.raises(OSError, match="directory"):
            check(wrong)


def test_what_is_written_is_on_the_disk_before_its_name_is_and_the_name_before_it_is_said_to_be(tmp_path: Path) -> None:
    done = list[str]()

    def noted(frame: object, event: str, of: object) -> None:
        if event == "c_return" and getattr(of, "__name__", "") in ("fsync", "replace", "rename"):
            done.append(cast(str, getattr(of, "__name__", "")))

    before = sys.getprofile()
    sys.setprofile(noted)
    try:
        write_all({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    finally:
        sys.setprofile(before)
    assert [one.replace("rename", "replace") for one in done] == ["fsync", "replace", "fsync", "replace", "fsync"]
