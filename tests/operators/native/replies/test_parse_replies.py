"""Replies become what DSPy's ChatAdapter, JSONAdapter and XMLAdapter make of them: the same values, or a refusal."""
# a corpus is read best in long lines

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from reply_texts import SPECS, TYPES, chat_replies, content, json_replies, ours, xml_replies

from dspex.bus.errors import InvalidOutput


@pytest.fixture(scope="session")
def peers(dspy: Any) -> Any:
    """DSPy's adapters, and its signatures by the text of ours."""
    from dspy.adapters.xml_adapter import XMLAdapter

    adapters = {"chat": dspy.ChatAdapter(), "json": dspy.JSONAdapter(), "xml": XMLAdapter()}
    signature = cache(lambda spec: dspy.Signature(spec, custom_types=_known(dspy, spec)))
    return SimpleNamespace(adapters=adapters, signature=signature)


def _known(dspy: Any, spec: str) -> dict[str, Any]:
    import datetime

    return {**TYPES, "datetime": datetime}


def compare(peers: Any, adapter: str, spec: str, text: str) -> str:
    try:
        theirs = shown(peers.adapters[adapter].parse(peers.signature(spec), text))
    except Exception as e:  # noqa: BLE001  # not only AdapterParseError: DSPy lets some TypeErrors and ValueErrors out
        theirs = f"refused: {type(e).__name__}"
    try:
        mine = shown(ours(spec).parse(text, adapter=adapter))
    except InvalidOutput:
        mine = "refused"
    assert mine == (theirs if theirs[:7] != "refused" else "refused")
    return f"{adapter}: {'refused' if mine == 'refused' else 'accepted'}"


def shown(fields: dict[str, Any]) -> str:
    return repr({k: (type(v).__name__, v) for k, v in fields.items()})


# -- the promise --------------------------------------------------------------------------------------------------
@given(case=chat_replies())
def test_a_chat_reply_is_what_dspy_makes_of_it(peers: Any, case: tuple[str, str]) -> None:
    event(compare(peers, "chat", *case))


@given(case=json_replies())
def test_a_json_reply_is_what_dspy_makes_of_it(peers: Any, case: tuple[str, str]) -> None:
    event(compare(peers, "json", *case))


@given(case=xml_replies())
def test_an_xml_reply_is_what_dspy_makes_of_it(peers: Any, case: tuple[str, str]) -> None:
    event(compare(peers, "xml", *case))


@given(
    spec=st.sampled_from(SPECS),
    text=content | chat_replies().map(lambda c: c[1]) | json_replies().map(lambda c: c[1]),
    adapter=st.sampled_from(["chat", "json", "xml"]),
)
def test_a_reply_in_the_format_of_another_adapter_is_what_dspy_makes_of_it(
    peers: Any, spec: str, text: str, adapter: str
) -> None:
    event(compare(peers, adapter, spec, text))


CORPUS = [
    ("chat", "q -> answer", "[[ ## answer ## ]]\nParis x [[ ## completed ## ]]\nmore\n\n[[ ## completed ## ]]\n"),
    ("chat", "q -> a, b, c", "[[ ## a ## ]]\n1 [[ ## b ## ]]\n2\n[[ ## b ## ]]\n3\n[[ ## c ## ]]\n4\n[[ ## completed ## ]]"),
    ("chat", "q -> answer", "[[ ## answer ## ]]\nx\n\n[[ ## completed ## ]] [[ ## answer ## ]]\ny"),
    ("chat", "q -> answer", "[[ ## answer ## ]] x  \n y \n\n[[ ## answer ## ]]\nz"),
    ("chat", "q -> answer", "  [[ ## answer ## ]]\n2"),
    ("chat", "q -> answer", " " * 30 + "[[ ## answer ## ]] x"),
    ("chat", "q -> n: int", "  [[ ## n ## ]]\n2"),
    ("chat", "q -> answer", "[[ ## answer ## ]]\na\rb\x0bc\u2028d\r\n\x85e"),
    ("chat", "q -> answer", "intro\x0b[[ ## answer ## ]]\x0bx\x1c[[ ## other ## ]]\x1cy"),
    ("chat", "q -> answer", "**[[ ## answer ## ]]**\nx"),
    ("chat", "q -> answer", "[[ ## answer ## ]]"),
    ("chat", "q -> answer", ""),
    ("chat", "q -> answer: str | None, score: float | None", "nothing at all"),
    ("chat", "q -> answer: str | None", "[[ ## answer ## ]]\nNone\n\n[[ ## completed ## ]]"),
    ("chat", "q -> answer, score: float", "[[ ## score ## ]]\n0.5\n[[ ## answer ## ]]\nx"),
    ("chat", "q -> answer", "```\n[[ ## answer ## ]]\nx\n```"),
    ("chat", "q -> answer", '{"answer": "x"}'),
    (
        "chat",
        "q -> data: dict[str, Any], items: list[dict[str, int]]",
        "[[ ## data ## ]]\n```json\n{'a': 1,}\n```\n[[ ## items ## ]]\n[{\"a\": 1}",
    ),
    ("chat", "q -> réponse, 答え: int", "[[ ## réponse ## ]]\noui\n[[ ## 答え ## ]]\n４２"),
    ("json", "q -> answer", '{"answer": null}'),
    ("json", "q -> answer", '{"answer": {"a": [1, "x"]}}'),
    ("json", "q -> answer", '{"answer": NaN}'),
    ("json", "q -> answer", '{"answer": "x", "answer": "y"}'),
    ("json", "q -> answer", '{"Answer": "x"}'),
    ("json", "q -> answer", '{"answer": "x"} {"answer": "y"}'),
    ("json", "q -> answer", '{"answer": "x"} and {"answer": "y"}'),
    ("json", "q -> answer", '{"answer": "x"}, {"answer": "y"}'),
    ("json", "q -> answer", '[{"answer": "x"}]'),
    ("json", "q -> answer", '[{"answer": "x"}, {"answer": "y"}]'),
    ("json", "q -> answer", '{"outputs": {"answer": "x"}}'),
    ("json", "q -> answer", '{"answer": "a } b"} [1]'),
    ("json", "q -> answer", 'Here {maybe}: {"answer": "x"}'),
    ("json", "q -> answer", '"answer": "x"}'),
    ("json", "q -> answer", '{"answer": "say "hi" now"}'),
    ("json", "q -> answer", "{'answer': 'it''s'}"),
    ("json", "q -> answer", '{"answer": "a\nb\tc"}'),
    ("json", "q -> answer", '{"answer": "\\ud83d"}'),
    ("json", "q -> answer", '{"answer": "\ud83d"}'),
    ("json", "q -> answer", '```json\n{"answer": "x"}\n```\n```json\n{"answer": "y"}\n```'),
    ("json", "q -> answer", '```json\n{"answer": "x", "answer": "y"}\n```'),
    ("json", "q -> answer", '{"answer": "x\\"y", "answer": 2}, more'),
    ("json", "q -> answer", '\ufeff{"answer": "x"}'),
    ("json", "q -> answer", '"'),
    ("json", "q -> answer", "[]"),
    ("json", "q -> answer", '{"```json\n[1]\n```'),
    (
        "json",
        "q -> u: Union[int, str], v: Union[list[int], str], w: Any",
        '{"u": 99999999999999999999, "v": "[1]", "w": [18446744073709551616, -0, 1e400]}',
    ),
    ("json", "q -> n: int, ok: bool", '{"n": "5", "ok": "yes"}'),
    ("json", "q -> n: int, ok: bool", '{"n": 5.0, "ok": 1}'),
    ("json", "q -> n: int, ok: bool", '{"n": 1e30, "ok": true}'),
    ("json", "q -> alias: Aliased, level: Level", '{"alias": {"street": "s"}, "level": "LOW"}'),
    ("xml", "q -> answer", "<answer>a < b</answer>"),
    ("xml", "q -> answer", "<answer>x</answer><answer>y</answer>"),
    ("xml", "q -> answer", "<answer>a <b>c</b> d &amp; e</answer>"),
    ("xml", "q -> answer", "<answer/>"),
    ("xml", "q -> answer", "<x><answer>y</answer></x>"),
    ("xml", "q -> answer", "<answer><![CDATA[ a < b ]]></answer>"),
    ("xml", "q -> answer: str | None, score: float | None", "<answer> </answer><score/>"),
    (
        "xml",
        "q -> item: list[str], entry: dict[str, list[int]]",
        '<item>a</item><item>b</item><entry key="entry"><entry key="a b"><item>1</item></entry></entry>',
    ),
    ("xml", "q -> item: list[str], entry: dict[str, list[int]]", "<item>['a']</item><entry>{'k': [1]}</entry>"),
    (
        "xml",
        "q -> person: Person",
        "<person><name>n</name><tags>t</tags><address><street>s</street></address><friends><item><name>m</name></item></friends></person>",
    ),
    ("xml", "q -> person: Person", '<person>{"name": "n"}</person>'),
    (
        "xml",
        "q -> people: list[Person], home: Address | None",
        "<people><name>n</name></people><people><name>m</name></people><home/>",
    ),
    ("xml", "q -> alias: Aliased, level: Level", "<alias><name>s</name></alias><level>LOW</level>"),
    ("xml", "q -> alias: Aliased, level: Level", "<alias><street>s</street></alias><level>1</level>"),
    (
        "xml",
        "q -> u: Union[int, str], v: Union[list[int], str], w: Any",
        "<u>5</u><v><item>1</item></v><w><a>1</a><a>2</a></w>",
    ),
    ("xml", "q -> answer", "<answer>\ud800</answer>"),
]


@pytest.mark.parametrize(("adapter", "spec", "text"), CORPUS)
def test_every_reply_of_the_corpus_is_what_dspy_makes_of_it(peers: Any, adapter: str, spec: str, text: str) -> None:
    compare(peers, adapter, spec, text)
