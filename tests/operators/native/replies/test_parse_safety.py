"""Untrusted replies: no code is run, every reply takes bounded time, and a refused one raises InvalidOutput."""
# ruff: noqa: E501  # a corpus is read best in long lines

from __future__ import annotations

import contextlib
import enum
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
from reply_texts import parse_value

from dspex.bus.errors import InvalidInput, InvalidOutput, TopologyError
from dspex.operators.native.adapters import Adapter
from dspex.operators.native.replies import repair
from dspex.operators.native.signature import Signature

SIZE = 100_000  # characters of an untrusted text
BITS = [
    "[", "{", "(", "<", "\\", '"', "'", "[[ ## ", "[[ ## a ## ]]\n", "[[ ## a ## ]]", '{"', '["', '{"a":', '{"a": {"b": [', "[{", '{"a" ', "#", "/", "/*", "//x\n",
    "9", "-", "1,", "1+", "not ", "()", "{}", '{"a": 1} ', "<a>", "<a", "&", "&amp;", "<!--", "<![CDATA[", "]]>", "\n", "\r", " ", "\u2028", "```json\n", "“", "a ", "\ud800",
]  # fmt: skip
SLOW = ('{"', '{"a" ', '["', '{"a": 1} ', "[{", "{", "[[ ## a ## ]]")
ANY = Signature("q -> a: list[Any], b: int")


@pytest.mark.no_cover  # a budget of time
@pytest.mark.parametrize("bit", [pytest.param(b, id=repr(b), marks=[pytest.mark.long] if b in SLOW else []) for b in BITS])
def test_a_large_untrusted_reply_is_refused_within_seconds(bit: str) -> None:
    for text in ((bit * SIZE)[:SIZE], '["' + (bit * 20_000)[:20_000]):
        started = time.process_time()
        for adapter in ("chat", "json", "xml"):
            with pytest.raises(InvalidOutput) as e:
                ANY.parse(text, adapter=adapter)
            assert len(str(e.value)) < 2_000
        assert time.process_time() - started < 10


class Color(enum.Enum):
    RED = "red"


class Model(pydantic.BaseModel):
    x: int


@pytest.mark.no_cover  # a budget of time
@pytest.mark.parametrize(
    "annotation",
    [int, float, bool, Any, str | None, Literal["a", 1], Color, list[int], dict[str, Any], set[int], Model, int | str],
    ids=repr,
)
def test_a_long_value_of_a_reply_is_read_or_refused_within_seconds(annotation: Any) -> None:
    for text in (
        "9" * SIZE,
        "-" * SIZE,
        "[" * SIZE,
        "1," * SIZE,
        "1+" * SIZE,
        '"' * SIZE,
        "a" * SIZE,
        "[" + "9" * SIZE + "]",
        "not " * SIZE,
    ):
        started = time.process_time()
        with contextlib.suppress(InvalidOutput):
            parse_value(text, annotation)
        assert time.process_time() - started < 7


@pytest.mark.parametrize("depth", [201, 900, 5_000, 100_000])
def test_json_nested_too_deep_is_refused(depth: int) -> None:
    deep = "[" * depth + "]" * depth
    for text in (f'{{"a": {deep}, "b": 1}}', f"see {{'a': {deep}, 'b': 1}}"):
        with pytest.raises(InvalidOutput):
            ANY.parse(text, adapter="json")
    with pytest.raises(InvalidOutput):
        ANY.parse(f"[[ ## a ## ]]\n{deep}\n[[ ## b ## ]]\n1\n", adapter="chat")


def test_json_nested_within_the_limit_is_read() -> None:
    deep = "[" * 150 + "]" * 150
    assert str(ANY.parse(f'{{"a": {deep}, "b": 1}}', adapter="json")["a"]) == deep


def test_elements_nested_too_deep_are_refused() -> None:
    for spec in ("q -> a: list[Any]", "q -> a", "q -> a: Any"):
        with pytest.raises(InvalidOutput):
            Signature(spec).parse(f"<a>{'<item>' * 5_000}x{'</item>' * 5_000}</a>", adapter="xml")


ENTITIES = '<!DOCTYPE a [<!ENTITY x "boom"><!ENTITY f SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    "reply",
    [f"{ENTITIES}<a>&x;</a>", f"</dspy_root>{ENTITIES}<dspy_root><a>&f;</a>", "<a>&x;</a>", '<?xml version="1.0"?><a>1</a>'],
)
def test_xml_defines_no_entities_and_reads_no_files(reply: str) -> None:
    with pytest.raises(InvalidOutput, match="no XML"):
        Signature("q -> a").parse(reply, adapter="xml")


@pytest.mark.parametrize("annotation", [str, Any, int | str, Literal["a"], list[str], dict[str, Any]], ids=repr)
def test_values_of_a_reply_are_never_evaluated_as_code(annotation: Any, tmp_path: Path) -> None:
    trace = tmp_path / "run"
    loaded = set(sys.modules)
    for text in (
        f"__import__('pathlib').Path({str(trace)!r}).touch()",
        f"[open({str(trace)!r}, 'w')]",
        "f'{__import__(\"this\")}'",
        "<<DSPY-CUSTOM-TYPE>>[1]</DSPY-CUSTOM-TYPE>",
    ):
        try:
            value = parse_value(text, annotation)
        except InvalidOutput:
            continue
        assert isinstance(value, (str, list, dict))
    assert not trace.exists()
    assert "this" not in set(sys.modules) - loaded


def test_an_error_about_a_reply_lists_every_field_and_shows_its_beginning() -> None:
    signature = Signature("q -> n: int, ok: bool, items: list[int], text")
    reply = "[[ ## n ## ]]\nmany\n\n[[ ## ok ## ]]\nperhaps" + "!" * 500 + "\n\n[[ ## items ## ]]\n[1, 'x']\n"
    with pytest.raises(InvalidOutput) as e:
        signature.parse(reply)
    message = str(e.value)
    assert all(part in message for part in ("n: ", "'many'", "ok: ", "items: ", "no text", "It begins: "))
    assert len(message) < 1_200


@pytest.mark.parametrize(("adapter", "reply"), [("chat", "[[ ## a ## ]]\n11\n"), ("json", '{"a": 11}'), ("xml", "<a>11</a>")])
def test_constraints_of_outputs_are_enforced_when_a_reply_is_parsed(adapter: Adapter, reply: str) -> None:
    signature = Signature("q -> a: Annotated[int, Field(le=10)]")
    assert signature.parse(reply.replace("11", "10"), adapter=adapter) == {"a": 10}
    with pytest.raises(InvalidOutput, match="less than or equal to 10"):
        signature.parse(reply, adapter=adapter)


def test_an_error_about_an_element_shows_its_text() -> None:
    with pytest.raises(InvalidOutput, match=r"got 'many'"):
        Signature("q -> n: int").parse("<n> many </n>", adapter="xml")


def test_a_type_without_a_schema_is_refused_by_the_xml_adapter() -> None:
    with pytest.raises(TopologyError, match="no JSON Schema"):
        Signature("q -> a: C", types={"C": Callable}).parse("<a>1</a>", adapter="xml")


UNION = " | ".join(f"Literal['{i}']" for i in range(1_100))
MANY_WRONG = {
    "a list": ("list[int]", ["x"] * 30_000),
    "a list of choices": (f"list[{UNION}]", ["x"] * 100),
    "an object": ("dict[str, int]", {str(i): "x" for i in range(10_000)}),
    "choices": (f"Literal[{', '.join(map(repr, range(2_000)))}]", "x"),
}


@pytest.mark.no_cover  # a budget of time
@pytest.mark.parametrize("name", MANY_WRONG)
def test_data_with_many_problems_is_refused_within_seconds_with_a_short_error(name: str) -> None:
    spec, value = MANY_WRONG[name]
    signature = Signature(f"q: {spec} -> a: {spec}")
    reply = json.dumps({"a": value})
    for check in (lambda: signature.parse(reply, adapter="json"), lambda: signature.check_inputs({"q": value})):
        started = time.process_time()
        with pytest.raises((InvalidOutput, InvalidInput)) as e:
            check()
        assert time.process_time() - started < 5
        assert len(str(e.value)) < 3_000


def test_a_list_is_validated_up_to_its_first_wrong_item() -> None:
    signature = Signature("q: list[int] -> a: dict[str, list[int]]")
    for check in (lambda: signature.check_inputs({"q": ["x", "y"]}), lambda: signature.check_outputs({"a": {"k": ["x", "y"]}})):
        with pytest.raises((InvalidOutput, InvalidInput), match=r"\b0: ") as e:
            check()
        assert "1: " not in str(e.value)


def test_an_error_about_a_thousand_fields_is_short() -> None:
    signature = Signature("q -> " + ", ".join("a" * 60 + str(i) for i in range(990)))
    for check in (lambda: signature.parse("x"), lambda: signature.check_outputs({})):
        with pytest.raises(InvalidOutput) as e:
            check()
        assert len(str(e.value)) < 3_000


def test_the_work_of_repairing_a_reply_is_limited_for_all_its_fields_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "MAX_WORK", 10_000)
    broken = "{'a': [" + "1, " * 300
    names = [f"f{i}" for i in range(20)]
    for several in ([names[0]], names):
        signature = Signature("q -> " + ", ".join(f"{n}: dict" for n in several))
        reply = "".join(f"[[ ## {n} ## ]]\n{broken}\n" for n in several)
        if several == names:
            with pytest.raises(InvalidOutput, match="too broken to be repaired"):
                signature.parse(reply)
        else:
            assert signature.parse(reply) == {names[0]: {"a": [1] * 300}}
