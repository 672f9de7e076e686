"""Files that are written whole."""

from __future__ import annotations

from os import PathLike, getpid
from pathlib import Path


def write(path: str | PathLike[str], text: bytes) -> None:
    """Write a file: under its name is all of it, or what was there before. Raises OSError."""
    whole = Path(path).resolve()
    if whole.exists() and not whole.is_file():  # a pipe, or a terminal
        whole.write_bytes(text)
        return
    part = whole.with_name(f".{whole.name}.{getpid()}.part")
    try:
        part.write_bytes(text)
        part.replace(whole)
    finally:
        part.unlink(missing_ok=True)
