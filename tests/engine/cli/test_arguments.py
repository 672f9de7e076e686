"""Data on the command line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dspex.bus.errors import ConfigError
from dspex.engine.cli.terminal.arguments import pairs, records


def read(*arguments: str, stdin: str = "") -> list[Any]:
    return list(records(arguments, io.StringIO(stdin)))


def test_name_value_arguments_are_text_or_json() -> None:
    assert read("a=1", "b:=1", "c=x=y", 'd:={"e": [null]}', "f=", "g=h:=1") == [
        {"a": "1", "b": 1, "c": "x=y", "d": {"e": [None]}, "f": "", "g": "h:=1"}
    ]
    assert pairs(["a=1", "b:=true"]) == {"a": "1", "b": True}
    assert read() == [{}]


def test_json_in_quotes_is_a_datum_as_it_is() -> None:
    assert read('{"a": "x=y", "b": [1]}') == [{"a": "x=y", "b": [1]}]
    assert read('{"a": 1, "b": 2}', "b=3") == [{"a": 1, "b": "3"}]
    assert read('["a=b"]') == [["a=b"]]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_data_file_may_have_any_encoding_that_can_be_seen(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text('{"a": "Grüße"}\n', encoding=encoding)
    assert read(f"@{tmp_path}/a.json") == [{"a": "Grüße"}]


def test_a_data_file_is_one_datum_and_named_fields_override_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1, "b": 2}')
    (tmp_path / "list.json").write_text("[]")
    assert read(f"@{tmp_path}/a.json", "b=3") == [{"a": 1, "b": "3"}]
    assert read(f"@{tmp_path}/list.json") == [[]]


def test_each_line_of_stdin_is_one_datum() -> None:
    assert read("-", "z=1", stdin='{"a": 1}\n\n{"a": 2}\n') == [{"a": 1, "z": "1"}, {"a": 2, "z": "1"}]


def test_stdin_is_read_as_it_comes() -> None:
    """A file of any size may be piped in: the second line is not read before the first was used."""
    stdin = io.StringIO('{"a": 1}\nnot json\n')
    found = records(["-"], stdin)
    assert next(found) == {"a": 1}
    with pytest.raises(ConfigError, match="line 2 of stdin is not JSON"):
        next(found)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["novalue"], "'novalue' is not data"),
        (["a:=x"], "a:=x is not JSON"),
        (["a=1", "b=2", "a:=2"], "the field 'a' is given twice"),
        (["@/no/such/file"], "cannot read /no/such/file"),
        (["a=\udcff"], "is not text in UTF-8"),
        (["a:=123456789012345678901"], "has more than 64 bits"),
        (['{"a": 1, "a": 2}'], "the key 'a' comes twice"),
        (['{"a": 1'], "is not JSON"),
        (["-", '{"a": 1}'], "the data come from one place"),
        (["-", "a=1"], "to a JSON object only"),
    ],
)
def test_arguments_that_are_not_data_are_refused(arguments: Sequence[str], what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        read(*arguments, stdin="[1]\n")
    assert caught.value.code == "DX120"
