"""Small files that say that they are large: what `dspex publish -f` may take of memory for them, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

FILES = Path(__file__).parent / "swollen"
MEMORY = 1 << 30
READ = f"""
import json, resource, sys
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
import pyarrow.compute, pyarrow.dataset, pyarrow.parquet
from dspex.bus.errors import ConfigError
from dspex.engine.cli.events.tables.table import HowToRead, opened

used = next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
resource.setrlimit(resource.RLIMIT_DATA, (used + {MEMORY}, resource.RLIM_INFINITY))
found = {{}}
for path in map(Path, sys.argv[1:]):
    try:
        with ExitStack() as stack:
            said = [str(row.fault or "a row") for row in islice(opened(str(path), HowToRead(), stack).rows(), 10)]
    except ConfigError as e:
        said = [f"{{e.message}}; {{e.fix}}"]
    found[path.name] = sorted(set(said))
print(json.dumps(found))
"""
SMALLER = "bytes of memory: write the file in smaller"
EXPECTED = {  # what is said of the first ten rows
    "dict.parquet": "a row",  # 3.5 MB, a thousand times
    "fixed.parquet": f"{SMALLER} row groups",  # 4 MB, a thousand times
    "delta.parquet": "a row",  # each begins as the one before it
    "texts.parquet": "and an event 67,108,864 at most",  # one text a thousand times in one list
    "list.parquet": f"{SMALLER} row groups",  # one row of 300 million numbers
    "page.parquet": f"{SMALLER} row groups",
    "dict.arrow": "a row",
    "runs.arrow": "a row",
    "views.arrow": "a row",
    "list_views.arrow": "a row",
    "zeros.arrow.gz": f"{SMALLER} batches",  # 2.4 GB in 74 KB
    "zeros.arrows.gz": f"{SMALLER} batches",
    "line.jsonl.gz": "line 1 has 67,108,864 bytes or more",
    "cell.csv.gz": "never closed",
    "cells.csv.gz": "262,144 lines or cells",
    "values.json.gz": "more than 16,777,216 values",
    "zeros.csv.gz": "it unpacks to more than 134,217,728 bytes",
}


def packed(begin: bytes, repeated: bytes, size: int) -> bytes:
    """So many bytes in gzip, in which one chunk that is compressed by itself comes again and again."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(begin) + packer.compress(repeated * (size // len(repeated))) + packer.flush()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process with little memory says of all of them."""
    folder = tmp_path_factory.mktemp("swollen")
    (folder / "line.jsonl.gz").write_bytes(packed(b'{"a": "', b"x", 65 << 20))
    (folder / "cell.csv.gz").write_bytes(packed(b'a,b\n1,"', b"x\n", 550_000))
    (folder / "cells.csv.gz").write_bytes(packed(b"a,b\n", b"1,", 550_000))
    (folder / "values.json.gz").write_bytes(packed(b"[[]", b",[]", 26 << 20))
    once = packed(b"", b"a,b\n", 32 << 20)
    (folder / "zeros.csv.gz").write_bytes(once * 5)  # gzip takes several files in one
    files = [*FILES.iterdir(), *folder.iterdir()]
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}  # the other one takes a gibibyte to begin with
    command = [sys.executable, "-c", READ, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit what a process takes")
@pytest.mark.parametrize("name", EXPECTED)
def test_a_small_file_that_says_it_is_large_takes_no_more_than_a_gibibyte(name: str, said: dict[str, Any]) -> None:
    assert len(said[name]) == 1
    assert EXPECTED[name] in said[name][0]


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit what a process takes")
def test_every_swollen_file_is_tried(said: dict[str, Any]) -> None:
    assert set(said) == set(EXPECTED)
