"""The reasons that servers give for the end of a reply, and what each of them makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from dspex.bus.errors import CallError, InvalidOutput, LMRefused, LMUnavailable
from dspex.bus.records import Usage
from dspex.operators.native.lm.completion import Pieces, read
from dspex.operators.native.lm.finish import incomplete

ERRORS: list[tuple[str, type[CallError] | None]] = [
    *((word, None) for word in ("", "stop", "STOP", "eos", "eos_token", "stop_sequence", "end_turn", "tool_calls")),
    *((word, InvalidOutput) for word in ("length", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens")),
    *((word, LMRefused) for word in ("content_filter", "refusal", "SAFETY", "RECITATION")),
    *((word, LMUnavailable) for word in ("error", "abort")),
]


@pytest.mark.parametrize(("word", "error"), ERRORS)
def test_the_reason_that_a_model_stopped_says_whether_its_reply_is_whole(word: str, error: type[CallError] | None) -> None:
    found = incomplete(word, "Dear customer")
    assert type(found) is (error or type(None))
    assert found is None or f"finish_reason {word!r}" in found.message


def body(finish: object, content: object, key: str = "message", **more: object) -> bytes:
    return json.dumps({"choices": [{key: {"content": content, **more}, "finish_reason": finish}]}).encode()


@pytest.mark.parametrize("finish", [None, 7, True, {}, ["length"], "x" * 10_000])
def test_a_reason_that_is_no_word_of_a_reasonable_length_does_no_harm(finish: object) -> None:
    assert len(read(body(finish, "hi"), "s").usage.finish) <= 40
    assert read(body(finish, "hi"), "s").text == "hi"


def test_an_empty_reply_says_why_the_model_stopped() -> None:
    error = read(body("tool_calls", None), "s").incomplete()
    assert isinstance(error, InvalidOutput)
    assert error.message == "the model's reply is empty (finish_reason 'tool_calls')"


def test_a_refusal_counts_also_beside_a_text() -> None:
    error = read(body("stop", "Well,", refusal="I cannot help."), "s").incomplete()
    assert isinstance(error, LMRefused)
    assert "I cannot help." in error.message


def test_a_refusal_in_pieces_is_put_together() -> None:
    pieces = Pieces("s", 1 << 20)
    parts = (body(None, None, "delta", refusal="I can"), body("stop", None, "delta", refusal="not."), b"[DONE]")
    assert list(pieces.feed(b"".join(b"data: %b\n\n" % part for part in parts))) == []
    assert pieces.end().refusal == "I cannot."


def test_tokens_that_the_provider_had_in_its_cache_are_counted() -> None:
    used = {"prompt_tokens": 90, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 64}}
    answer = json.loads(body("stop", "hi")) | {"usage": used}
    assert read(json.dumps(answer).encode(), "s").usage == Usage(90, 5, cached_tokens=64, finish="stop")
    answer["usage"]["prompt_tokens_details"] = [7]
    assert read(json.dumps(answer).encode(), "s").usage.cached_tokens == 0


@pytest.mark.parametrize("encoded", [lambda b: b"\xef\xbb\xbf" + b, lambda b: b.decode().encode("utf-16"), lambda b: b])
def test_a_body_is_read_with_a_byte_order_mark_and_in_utf_16(encoded: Callable[[bytes], bytes]) -> None:
    assert read(encoded(body("stop", "grüß dich")), "s").text == "grüß dich"


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"[" * 100_000, b"{", b"\xef\xbb\xbf", b"null", b'"a"'])
def test_a_body_that_is_no_completion_is_an_outage(junk: bytes) -> None:
    with pytest.raises(LMUnavailable):
        read(junk, "s")
