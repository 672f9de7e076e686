"""Words on the command line: data, numbers and durations."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.app import assemble, main
from dspex.engine.cli.terminal.arguments import pairs, records
from dspex.engine.cli.terminal.terminal import Terminal


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


MANY = "9" * 30
KINDS: dict[object, str] = {int: "int", float: "float", list[int]: "int", "DUR": "duration", "[DUR]": "duration or nothing"}
NONE_OF_A_KIND = {
    "duration": ("-1", "nan", "99999999999d", ""),
    "duration or nothing": ("-1", "nan", "99999999999d"),
    "int": (MANY, "1.5"),
    "float": ("nan", "1e999"),
}
ANY_WHOLE_NUMBER = ("test --seed", "run --as-process")  # the second is between processes of dspex


def verbs(command: Any, context: Any, words: Sequence[str] = ()) -> Iterator[tuple[Sequence[str], Any]]:
    if not hasattr(command, "list_commands"):
        yield words, command
        return
    for word in command.list_commands(context):
        below = command.get_command(context, word)
        yield from verbs(below, type(context)(below, info_name=word, parent=context), (*words, word))


def typed(words: Sequence[str], command: Any, wrong: Any, value: str) -> list[str]:
    """A command line on which everything else that is needed is given."""
    options, arguments = list(words), list[str]()
    for one in command.params:
        text = value if one is wrong else "1" if KINDS.get(one.type_descriptor.annotation) else "x"
        if one.param_type_name == "argument" and (one.required or one is wrong):
            arguments.append(text)
        elif one.required or one is wrong:
            options += [f"{one.opts[-1]}={text}"] if one.opts[-1].startswith("--") else [one.opts[-1], text]
    return [*options, "--", *arguments]


def test_every_option_and_argument_of_every_verb_refuses_what_is_no_such_number_or_duration_before_anything_is_done(
    tmp_path: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dspex.toml").write_text('server.url = "nats://127.0.0.1:9"\n')  # nobody listens there
    root: Any = typer.main.get_command(assemble(Terminal()))
    seen: list[str] = []
    for words, command in verbs(root, root.make_context("dspex", ["status"], resilient_parsing=True)):
        for one in command.params:
            kind = KINDS.get(one.metavar) or KINDS.get(one.type_descriptor.annotation)
            name = f"{' '.join(words)} {(one.opts or [one.name])[-1]}"
            if kind is None or getattr(one, "count", False):
                continue
            seen.append(name)
            values = NONE_OF_A_KIND[kind]
            for value in values if kind in ("int", "float") else [values[len(seen) % len(values)]]:  # one place reads durations
                if name in ANY_WHOLE_NUMBER and value == MANY:
                    continue
                code = main(["--json", *typed(words, command, one, value)])
                error = json.loads(capsys.readouterr().err)["error"]
                assert (code, error["retryable"]) == (2, False), (name, value, error)
                assert error["fix"]
                named = any(word in error["message"] for word in (name.split()[-1], str(one.metavar)))
                assert named or (value or repr(value)) in error["message"], (name, value, error)
    assert {"runs ls --limit", "audit ls --since", "pools drain --grace", "dlq show sequence", "eval -c"} <= set(seen)


@pytest.mark.parametrize("size", ["99999999", MANY, "-1", "1.5", "nan", ""])
def test_a_pool_can_be_scaled_to_a_number_of_workers_that_there_can_be_only(
    tmp_path: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--json", "--server", "nats://127.0.0.1:9", "pools", "scale", f"a={size}"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "DX105"
