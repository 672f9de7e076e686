"""Files that are written whole: who is killed meanwhile, or loses power, leaves what was there before."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from errno import EINVAL, EISDIR
from os import PathLike
from pathlib import Path
from typing import BinaryIO, Final

_PART: Final = (".dspex-", ".part")  # how the name of what is not whole yet begins and ends


def write(path: str | PathLike[str], text: bytes, *, mode: int | None = None) -> None:
    """Write a file: under its name is all of it, or what was there before. `mode`: that of before, or of a new file, where
    none is named. Raises OSError.
    """
    write_all({Path(path): text}, mode=mode)


def write_all(texts: Mapping[Path, bytes], *, mode: int | None = None) -> None:
    """Write several, each as `write` does."""
    for folder in {path.resolve().parent for path in texts if not _is_open(path)}:
        _clear(folder)
    written = set[Path]()
    for path, text in texts.items():
        if _is_open(path):
            path.write_bytes(text)
        else:
            _write(path.resolve(), text, path.stat().st_mode if mode is None and path.exists() else mode)
            written.add(path.resolve().parent)
    for folder in written:
        _keep_names(folder)


def check(path: Path) -> None:
    """Raise OSError where nothing could be written under the name. What is there stays."""
    if path.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
    if not _is_open(path):
        with _part(path.resolve().parent):
            pass


def _is_open(path: Path) -> bool:
    """Whether it is a pipe, a terminal, or what this process has open: somebody reads what is written there."""
    return (path.exists() and not path.is_file()) or path.is_relative_to("/dev")


def _write(whole: Path, text: bytes, mode: int | None) -> None:
    with _part(whole.parent) as (part, file):
        if mode is not None:
            os.fchmod(file.fileno(), mode & 0o7777)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else the name may be there after a loss of power, and nothing under it
        part.replace(whole)


def _keep_names(folder: Path) -> None:
    """Have the disk keep what files of a folder are called now."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # one that may be written, and not read: the system does it in its own time
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno != EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(opened)


@contextmanager
def _part(folder: Path) -> Generator[tuple[Path, BinaryIO]]:
    """A new file of a name of its own, which is gone afterwards. As long as it is locked, somebody writes it."""
    while True:
        part = folder / secrets.token_hex(6).join(_PART)
        try:
            with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as file:
                with suppress(OSError):  # a file system without locks: nobody takes it away there
                    fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink:  # else it was taken for one of a dead process before it was locked
                    yield part, file
                    return
        finally:
            part.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove what processes were writing when they were killed."""
    for part in folder.glob("*".join(_PART)):
        with (
            suppress(OSError),  # somebody writes it, has just done with it, or it is another user's
            open(os.open(part, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW), "rb+") as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
