"""Verbs and options that the design has and this version has not are refused by name; mistakes are usage errors as ever."""

from __future__ import annotations

import json

import pytest

from dspex.engine.cli.app import main


@pytest.mark.parametrize(
    ("args", "code", "what"),
    [
        (["doctor", "--fix"], "DX108", "--fix of dspex doctor"),
        (["apply", "--backfil", "30d"], "DX100", "--backfil"),
        (["bench", "stream"], "DX108", "dspex bench stream"),
        (["show", "--as", "asynkapi"], "DX105", "asynkapi"),
        (["run", "--relaod"], "DX100", "--relaod"),
        (["plam"], "DX100", "plam"),
    ],
)
def test_a_verb_that_is_not_built_is_refused_unlike_a_misspelt_one(
    capsys: pytest.CaptureFixture[str], args: list[str], code: str, what: str
) -> None:
    assert main(["--json", *args]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == code
    assert what in error["message"]
