"""What `telemetry.redact` takes out: fields by name or way, in data and in texts, and what functions take out of these."""

from __future__ import annotations

from typing import Any

import pytest

from dspex.bus.errors import ConfigError
from dspex.bus.serving.keys.redaction import REDACTED, Redaction
from dspex.bus.settings.model import Settings

CHAT = "[[ ## customer ## ]]\n{0}\nof Bern\n\n[[ ## text ## ]]\nit is lost\n\n[[ ## completed ## ]]"
XML = "<customer>{0}</customer>\n<text>it is lost</text>"


@pytest.mark.parametrize(
    ("patterns", "data", "seen"),
    [
        (["customer"], {"customer": "Ann", "a": [{"customer": 5}]}, {"customer": REDACTED, "a": [{"customer": REDACTED}]}),
        (["*.iban"], {"iban": "x", "pay": {"iban": "x"}}, {"iban": "x", "pay": {"iban": REDACTED}}),
        (["pay.iban"], {"pay": [{"iban": "x"}], "ship": {"iban": "x"}}, {"pay": [{"iban": REDACTED}], "ship": {"iban": "x"}}),
        (["cust*"], {"customer": {"name": "Ann"}, "other": None}, {"customer": REDACTED, "other": None}),
        (["customer"], {"customer": None, "raw": b"Ann", "ok": True}, {"customer": None, "raw": REDACTED, "ok": True}),
        (["customer"], '{"customer": "Ann", "n": 1}', '{"customer": "(redacted)", "n": 1}'),
        (["customer"], CHAT.format("Ann"), CHAT.format("(redacted)").replace("\nof Bern", "")),
        (["customer"], XML.format("Ann"), XML.format(REDACTED)),
        (["builtins:repr"], {"text": "a"}, {"text": "'a'"}),
        (["builtins:len"], {"text": "a"}, {"text": REDACTED}),
    ],
)
def test_what_fits_is_taken_out_and_all_else_stays(patterns: list[str], data: Any, seen: Any) -> None:
    assert Redaction(patterns).of()(data) == seen


def test_a_value_is_taken_out_of_texts_that_repeat_it() -> None:
    hide = Redaction(["account"]).of({"account": "DE44", "n": 1, "accounts": ["x"]}, {"deep": {"account": 12345}})
    assert hide(["about DE44 and 12345", 12345, "x"]) == ["about (redacted) and (redacted)", REDACTED, "x"]


@pytest.mark.parametrize("named", ["nowhere:f", "json:nothing", "json:__name__"])
def test_a_function_that_is_not_there_is_refused(named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Redaction([named])
    assert (refused.value.code, refused.value.node) == ("DX105", "telemetry.redact")


@pytest.mark.parametrize("text", ["a:b:c", ":f", "m:", " "])
def test_what_names_nothing_is_refused_where_settings_are_read(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings(telemetry={"redact": [text]})  # type: ignore[arg-type]
    assert [(problem.code, problem.node) for problem in refused.value.problems] == [("DX105", "telemetry.redact")]
