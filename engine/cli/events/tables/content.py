"""The bytes of a file of rows: unpacked by what they begin with, whatever the file is called, and ready to be read again."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

from dspex.bus.errors import ConfigError
from dspex.engine.cli.events.tables.row import needs_pyarrow, unreadable

IN_MEMORY: Final = 64 << 20  # bytes of an unpacked file; what is larger lies on the disk
CHUNK: Final = 1 << 20
RATIO: Final = 500  # times what it takes packed, beyond which a file is no table any more; one of zeros comes to 1,000
UNPACKED: Final = 2 * IN_MEMORY  # bytes that a file may take, whatever it takes packed
BEGINNING: Final = 16  # bytes that tell what a file is

_CSV = "save it as CSV (UTF-8), and publish that"


def _zstandard(file: IO[bytes]) -> Any:
    import pyarrow as pa  # the standard library has no Zstandard before Python 3.14

    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


_PACKED: Final[dict[bytes, Callable[[IO[bytes]], Any]]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstandard,
}
_FOREIGN: Final[dict[bytes, tuple[str, str]]] = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("it is a document of an old Office, as .xls files are", _CSV),
    b"Obj\x01": ("it is an Avro file", "convert it to Parquet or JSON lines"),
    b"SQLite format 3\x00": ("it is an SQLite database", "export the table: sqlite3 -csv -header FILE 'select …' > rows.csv"),
    b"%PDF-": ("it is a PDF document", "export the table it shows as CSV"),
    b"\x93NUMPY": ("it is a NumPy array", "write it as CSV or Parquet, with names for its columns"),
    b"\x89HDF": ("it is an HDF5 file", "convert it to Parquet"),
    b"FEA1": ("it is Feather version 1", "write it as version 2, or as Parquet"),
}


def opened(name: str, stack: ExitStack) -> IO[bytes]:
    """What the file holds, unpacked; `-` for stdin. It can be read several times: `seek` goes back to its beginning.

    Raises ConfigError (DX120) where it cannot be read, or is known to be no file of rows.
    """
    path, name = name, "stdin" if name == "-" else name
    try:
        file: IO[bytes] = os.fdopen(os.dup(0), "rb") if path == "-" else Path(path).open("rb")  # noqa: SIM115 - the stack closes it
        file = _whole(stack.enter_context(file), stack)
    except OSError as e:
        raise unreadable(name, e.strerror or str(e), "correct the path; one file of rows is named, and no folder") from e
    head = beginning(file)
    unpack = next((reader for magic, reader in _PACKED.items() if head.startswith(magic)), None)
    if unpack is not None and _is_packed(head):
        file = _unpacked(name, file, unpack, stack)
        head = beginning(file)
    _refuse_foreign(name, file, head)
    return file


def beginning(file: IO[bytes], size: int = BEGINNING) -> bytes:
    """The first bytes. The next ones read are again the first."""
    file.seek(0)
    head = file.read(size)
    file.seek(0)
    return head


def temporary(stack: ExitStack) -> IO[bytes]:
    """A file of this process that nobody else sees."""
    return stack.enter_context(tempfile.SpooledTemporaryFile(IN_MEMORY))


def _is_packed(head: bytes) -> bool:
    """A text may begin with BZh."""
    return not head.startswith(b"BZh") or head[4:10] == b"1AY&SY"


def _whole(file: IO[bytes], stack: ExitStack) -> IO[bytes]:
    """A pipe is read to its end: rows are looked at before the first of them is published."""
    if file.seekable():
        return file
    kept = temporary(stack)
    while chunk := file.read(CHUNK):
        kept.write(chunk)
    return kept


def _unpacked(name: str, file: IO[bytes], unpack: Callable[[IO[bytes]], Any], stack: ExitStack) -> IO[bytes]:
    kept = temporary(stack)
    most = max(UNPACKED, RATIO * file.seek(0, os.SEEK_END))
    file.seek(0)
    try:
        with unpack(file) as packed:
            while chunk := packed.read(CHUNK):
                kept.write(chunk)
                if kept.tell() > most:
                    raise unreadable(name, f"it unpacks to more than {most:,} bytes", "unpack it, and publish what is in it")
    except ImportError as e:
        raise needs_pyarrow(name, "what zstd has packed") from e
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise unreadable(
                name, f"what it holds does not fit into {tempfile.gettempdir()}", "set TMPDIR to a larger disk"
            ) from e
        raise _broken(name, e) from e
    except (EOFError, ValueError, zlib.error, lzma.LZMAError) as e:
        raise _broken(name, e) from e
    head = beginning(kept)
    if any(head.startswith(magic) for magic in _PACKED) and _is_packed(head):
        raise unreadable(name, "it is packed twice", "unpack it once")
    return kept


def _broken(name: str, e: Exception) -> ConfigError:
    return unreadable(name, f"it is packed, and broken: {e}", "fetch the whole file again")


def _refuse_foreign(name: str, file: IO[bytes], head: bytes) -> None:
    for magic, (what, fix) in _FOREIGN.items():
        if head.startswith(magic):
            raise unreadable(name, what, fix)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        names = beginning(file, CHUNK) + _end(file, CHUNK)  # those of the first and the last files in it
        if b"xl/workbook" in names:
            raise unreadable(name, "it is an Excel workbook", _CSV)
        if b"content.xml" in names:
            raise unreadable(name, "it is a document of LibreOffice", _CSV)
        raise unreadable(name, "it is a zip archive", "unpack it, and publish the file that is in it")


def _end(file: IO[bytes], size: int) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
    return file.read(size)
