"""Files as people have them, under corpus/: what `dspex publish -f` makes of each stands in the expected.json beside it.

`rows`: the data of its events. `faults`: what is said of which rows, and then nothing of the file is published. `refused`: why
it cannot be read at all. `remark`: what was guessed. Behind `?` stands an option of the command.
"""

from __future__ import annotations

import json
import sys
import tracemalloc
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from dspex.bus.errors import ConfigError, DspexError
from dspex.engine.cli.events.rows import EventOptions, Ready, RowSource
from dspex.engine.cli.events.tables.table import HowToRead
from dspex.engine.cli.events.tables.typed import readers

CORPUS = Path(__file__).parent / "corpus"
CASES = [
    (f"{folder.name}/{name}", expected)
    for folder in sorted(CORPUS.iterdir())
    for name, expected in json.loads((folder / "expected.json").read_text()).items()
]


def source_of(file: Path, option: str) -> RowSource:
    name, _, value = option.partition("=")
    how: dict[str, Any] = {name: readers([value]) if name == "types" else value}
    options: dict[str, Any] = {name: value}
    return RowSource(
        (),
        str(file),
        HowToRead(**how) if name in ("types", "format", "encoding") else HowToRead(),
        EventOptions("orders.new", **options) if name in ("key", "id") else EventOptions("orders.new"),
    )


def test_every_file_of_the_corpus_has_an_expectation() -> None:
    files = {f"{f.parent.name}/{f.name}" for f in CORPUS.glob("*/*")} - {f"{d.name}/expected.json" for d in CORPUS.iterdir()}
    assert {name.partition("?")[0] for name, _ in CASES} == files
    assert len(files) >= 40


@pytest.mark.parametrize(("name", "expected"), CASES, ids=[name for name, _ in CASES])
def test_each_row_of_a_file_is_an_event_or_an_error_says_which_is_not(name: str, expected: dict[str, Any]) -> None:
    path, _, option = name.partition("?")
    source = source_of(CORPUS / path, option)
    with ExitStack() as stack:
        if "refused" in expected:
            with pytest.raises(ConfigError) as caught:
                source.opened(stack)
            assert expected["refused"] in str(caught.value)
            assert (caught.value.code, Path(path).name in str(caught.value)) == ("DX120", True)
            return
        table = source.opened(stack)
        found = [list(source.ready(table.rows(), table.digest)) for _ in range(2)]
    assert expected.get("remark", "") in table.remark
    assert bool(table.remark) == ("remark" in expected)
    faults = {e.node: e for e in found[0] if isinstance(e, DspexError)}
    assert set(faults) == set(expected.get("faults", {}))
    for where, why in expected.get("faults", {}).items():
        assert why in faults[where].message
        assert faults[where].code == "DX120"
    ready = [[one for one in each if isinstance(one, Ready)] for each in found]
    assert [r.id for r in ready[0]] == [r.id for r in ready[1]], "a file that is read again gives other ids"
    assert len({r.id for r in ready[0]}) == len(ready[0])
    if "rows" in expected:
        assert [json.loads(r.message.data) for r in ready[0]] == expected["rows"]


def test_a_small_file_asks_for_little_memory() -> None:
    """A read of so many bytes at most asks for all of them first, and where memory is limited there is none."""
    tracemalloc.start()
    try:
        for name in {name.partition("?")[0] for name, _ in CASES}:
            with ExitStack() as stack, suppress(ConfigError):
                list(source_of(CORPUS / name, "").opened(stack).rows())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize("path", ["columns/plain.parquet", "arrow/stream.arrow", "packed/rows.csv.zst"])
def test_a_file_that_needs_a_package_that_is_not_installed_names_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with ExitStack() as stack, pytest.raises(ConfigError, match="needs pyarrow") as caught:
        source_of(CORPUS / path, "").opened(stack)
    assert (caught.value.code, caught.value.fix) == ("DX109", "pip install 'dspex[arrow]'")
