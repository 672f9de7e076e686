"""A reply that comes in pieces gives the text of each field that the parser sees, however it is cut."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import Any, get_args

import pytest
from cost import grows_linearly
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dspex.bus.errors import TopologyError
from dspex.operators.native.adapters import Adapter
from dspex.operators.native.replies import parse_chat
from dspex.operators.native.replies.streaming import Splitter
from dspex.operators.native.signature import Signature

SIGNATURE = Signature("q -> a, b, long_name")
NAMES = ["a", "b", "long_name", "completed", "other", "q"]
BREAKS = ["\n", "\n\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
HEADERS = ["[[ ## {} ## ]]"] * 6 + [
    "  [[ ## {} ## ]]",
    "\x1f\u00a0[[ ## {} ## ]]",
    " " * 40 + "[[ ## {} ## ]]",
    "x [[ ## {} ## ]]",
    "[[ ## {} ##",
]
BITS = [
    *BREAKS,
    "[",
    "[[",
    "[[ ##",
    "[[ ## ",
    " ## ]]",
    "]]",
    "word",
    "é",
    " ",
    "  ",
    "\t",
    "\x1f",
    "\u3000",
    "[[ ## a ## ]]",
    "[[ ## b",
    "[[ ##  ## ]]",
]


def split(adapter: Adapter, pieces: Iterable[str], signature: Signature = SIGNATURE) -> dict[str, str]:
    """The pieces of each field, put together."""
    splitter = Splitter(signature.outputs, adapter)
    found: dict[str, str] = {}
    for chunks in (*(splitter.feed(p) for p in pieces), splitter.finish()):
        for name, text in chunks:
            assert text, "an empty chunk says nothing"
            found[name] = found.get(name, "") + text
    return found


def cut(draw: Any, text: str) -> list[str]:
    if draw(st.booleans()):
        return list(text)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[i:j] for i, j in zip([0, *places], [*places, len(text)], strict=True)]


bits = st.lists(st.sampled_from(BITS) | st.text(max_size=4), max_size=5).map("".join)


@st.composite
def chat(draw: st.DrawFn) -> tuple[str, list[str]]:
    parts = [draw(bits)]
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=5)):
        parts += [
            draw(st.sampled_from(["\n", *BREAKS, " ", ""])),
            draw(st.sampled_from(HEADERS)).format(name),
            draw(st.sampled_from(["\n", "", " "])),
        ]
        parts += [draw(bits)]
    text = "".join(parts)
    return text, cut(draw, text)


@settings(max_examples=settings().max_examples // 4)
@given(case=chat())
@example(case=("[[ ## a ## ]] x \t\n y", list("[[ ## a ## ]] x \t\n y")))
@example(case=("\r\n[[ ## a ## ]]\r\n\r\nx\r\n", list("\r\n[[ ## a ## ]]\r\n\r\nx\r\n")))
def test_a_streamed_chat_reply_gives_the_parsers_texts_however_it_is_cut(case: tuple[str, list[str]]) -> None:
    text, pieces = case
    seen = parse_chat.sections(text, SIGNATURE.outputs)
    assert split("chat", pieces) == {name: value for name, value in seen.items() if value}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
strings = st.text(max_size=10) | st.text(st.sampled_from('"\\/{}[]:,\n\t\b😀\ud83d\ude00\ud800é\u2028u0'), max_size=10)


@st.composite
def objects(draw: st.DrawFn) -> tuple[dict[str, Any], list[str]]:
    names = st.sampled_from([*NAMES, 'a"', "a\\", "\u0061\u0301", "😀"])
    value = draw(st.dictionaries(names, strings | plain, max_size=4))
    written = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 2])))
    before = draw(st.sampled_from(["", "```json\n", "Sure: ", "{ok} ", "\n"]))
    after = draw(
        st.sampled_from(["", "\n```", "}", ' {"a": 2}' if value else ""])
    )  # the first object is empty: the next counts
    return json.loads(written), cut(draw, before + written + after)  # a pair of surrogates becomes one character


@settings(max_examples=settings().max_examples // 4)
@given(case=objects())
def test_a_streamed_json_reply_gives_decoded_strings_and_other_values_as_json_however_it_is_cut(
    case: tuple[dict[str, Any], list[str]],
) -> None:
    value, pieces = case
    wanted = {n: v for n, v in value.items() if n in SIGNATURE.outputs}
    found = split("json", pieces)
    assert {n: found.get(n, "") if isinstance(v, str) else json.loads(found[n]) for n, v in wanted.items()} == wanted
    assert set(found) <= set(wanted)


inner = st.lists(
    st.sampled_from(
        [
            "<",
            ">",
            "&",
            " ",
            "\n",
            "\r\n",
            "word",
            "é",
            "&amp;lt;",
            "'",
            '"',
            "<!-- <a>x</a> > -->",
            "<![CDATA[ <b> & ]]>",
            "<?p <a> ?>",
        ]
    ),
    max_size=5,
)


@st.composite
def elements(draw: st.DrawFn) -> tuple[str, list[str]]:
    parts = [draw(st.sampled_from(["", "Sure!\n", "<!-- <a> -->", "<c>&amp;<a/></c>"]))]
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=4)):
        text = "".join(t if t.startswith(("<!", "<?")) else t.replace("&", "&amp;").replace("<", "&lt;") for t in draw(inner))
        attributes = draw(st.sampled_from(["", " ", ' k=">"', ' k="/>" l=\'"\'']))
        parts.append(f"<{name}{attributes}>{text}</{name}>\n")
    return "".join(parts), cut(draw, "".join(parts))


@settings(max_examples=settings().max_examples // 4)
@given(case=elements())
def test_a_streamed_xml_reply_gives_the_text_of_elements_however_it_is_cut(case: tuple[str, list[str]]) -> None:
    text, pieces = case
    seen: dict[str, str] = {}
    for child in ET.fromstring(f"<r>{text}</r>"):
        seen.setdefault(child.tag, (child.text or "").strip())
    assert split("xml", pieces) == {n: t for n, t in seen.items() if n in SIGNATURE.outputs and t}


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        ("chat", "[[ ## a ## ]]\none\ntwo\n\n[[ ## b ## ]]\n 3 \n\n[[ ## long_name ## ]]\nx\n\n[[ ## completed ## ]]\n"),
        ("json", '```json\n{"a": "one\\ntwo", "b": "3", "long_name": "x"}\n```'),
        ("xml", "<a>one\ntwo</a> <b> 3 </b>\n<long_name>x</long_name>"),
    ],
)
def test_streamed_fields_are_equal_to_the_parsed_reply(adapter: Adapter, text: str) -> None:
    assert split(adapter, text) == SIGNATURE.parse(text, adapter=adapter) == {"a": "one\ntwo", "b": "3", "long_name": "x"}


@pytest.mark.parametrize(("adapter", "start"), [("chat", "[[ ## a ## ]]\n"), ("json", '{"a": "'), ("xml", "<a>")])
def test_streamed_text_that_cannot_be_a_marker_is_given_at_once(adapter: Adapter, start: str) -> None:
    splitter = Splitter(SIGNATURE.outputs, adapter)
    splitter.feed(start)
    assert splitter.feed("Paris") == [("a", "Paris")]
    assert splitter.feed(" is") == [("a", " is")]


@pytest.mark.no_cover  # a budget of time
@pytest.mark.parametrize("adapter", get_args(Adapter))
@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[[ ## ",
        "[[ ## a",
        "[[ ## a ## ]]\n",
        " ",
        "\\",
        '{"a": "',
        '{"a": "\\',
        '{"a": [',
        '{"a": {"',
        "{",
        "<",
        "<!--",
        "<![CDATA[",
        "<a",
        "<a>",
        "<a>&",
        "&",
        '<a b="',
        "\r",
        "\ud800",
    ],
    ids=repr,
)
def test_an_untrusted_reply_is_split_within_seconds_however_it_is_cut(adapter: Adapter, text: str) -> None:
    untrusted = (text * (20_000 // len(text)))[:20_000]
    started = time.process_time()
    for first in ("", text, "[[ ## a ## ]]\n", '{"a": "', "<a>"):
        split(adapter, first + untrusted[:1_000])
        split(adapter, [first, untrusted])
    assert time.process_time() - started < 10  # a third of a second, and many times that where lines are counted


@pytest.mark.no_cover  # a budget of time
@pytest.mark.parametrize(
    ("adapter", "start", "bit"), [("xml", '<a b="', ">"), ("xml", "<!--", ">"), ("chat", "[[ ## ", "x"), ("json", '{"', "x")]
)
def test_a_marker_without_an_end_is_split_in_linear_time(adapter: Adapter, start: str, bit: str) -> None:
    assert grows_linearly(lambda size: split(adapter, start + bit * size), 10_000)


def test_an_unknown_adapter_is_refused() -> None:
    with pytest.raises(TopologyError, match="chta"):
        Splitter(SIGNATURE.outputs, "chta")  # type: ignore[arg-type]


@pytest.mark.parametrize("digits", ["-123", "1_23", "+123", " 123", "\u0661\u0661\u0661\u0661"])
def test_an_escape_without_four_digits_is_text(digits: str) -> None:
    splitter = Splitter(["a"], "json")
    pieces = [*splitter.feed(f'{{"a": "x\\u{digits}"}}'), *splitter.finish()]
    assert "".join(text for _, text in pieces) == f"x\\u{digits}"
