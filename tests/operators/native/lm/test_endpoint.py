"""The client of chat-completions servers, against real servers on loopback: one that speaks HTTP by hand, and the stand-in."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from cost import grows_linearly
from standin import StandIn

from dspex.bus.errors import CallError, CallTimeout, ConfigError, InvalidOutput, LMRefused, LMUnavailable, RateLimited
from dspex.bus.records import Usage
from dspex.operators.native.lm.completion import Completion, Pieces
from dspex.operators.native.lm.endpoint import Endpoint

CUT = b"<then the connection is closed>"
KEY = "sk-very-secret-1234"
DEEP = b"[" * 1000 + b"]" * 1000  # JSON that can be read, and is more than str() survives
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def ok(content: Any = "hi", **more: Any) -> bytes:
    """A whole answer as bytes on the wire."""
    data = {"model": "m-1", "choices": [{"message": {"content": content}, "finish_reason": "stop"}], **more}
    return response(200, json.dumps(data).encode())


def response(status: int, body: bytes, **headers: str) -> bytes:
    head = {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
    return f"HTTP/1.1 {status} X\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in head.items()).encode() + b"\r\n" + body


def error(status: int, code: str = "", message: str = "no", kind: str = "", **headers: str) -> bytes:
    return response(status, json.dumps({"error": {"message": message, "code": code, "type": kind}}).encode(), **headers)


class Server:
    """Answers each request with the bytes that it was given; keeps requests, connections, and which of them were closed."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(size)
                self.requests.append(head + body)
                writer.write(self.answer.removesuffix(CUT))
                await writer.drain()
                if self.answer.endswith(CUT):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed.set()
            writer.close()


@asynccontextmanager
async def serving(answer: bytes, **options: Any) -> AsyncIterator[tuple[Server, Endpoint]]:
    ours = Server(answer)
    server = await asyncio.start_server(ours.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Endpoint(f"http://127.0.0.1:{port}/v1/", KEY, **options) as endpoint:
        yield ours, endpoint


async def asked(answer: bytes, **options: Any) -> Completion:
    async with serving(answer, **options) as (_, endpoint):
        return await endpoint.complete(BODY, 5.0)


# -- answers ---------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_an_answer_is_text_tokens_model_and_the_reason_it_ended() -> None:
    async with serving(ok("hallo", usage={"prompt_tokens": 7, "completion_tokens": 3})) as (server, endpoint):
        assert await endpoint.complete(BODY) == Completion("hallo", Usage(7, 3, finish="stop"), "m-1")
    (request,) = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}".encode() in head
    assert b"Accept-Encoding" not in head
    assert json.loads(body) == BODY


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (ok([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]), "ab"),
        (ok(None), ""),
        (ok("", usage=None), ""),
        (ok("x", usage={"prompt_tokens": -3, "completion_tokens": "many"}), "x"),
        (response(200, b'{"choices": [{"message": {"content": "x"}}], "model": %s}' % DEEP), "x"),
        (response(200, b'{"choices": [{"message": {"content": [{"type": "text", "text": %s}]}}]}' % DEEP), ""),
        (response(200, b'{"choices": []}'), ""),
        (response(200, b'{"choices": [{"message": null}]}'), ""),
    ],
)
async def test_unusual_answers_are_read_as_dspy_reads_them(answer: bytes, text: str) -> None:
    found = await asked(answer)
    assert (found.text, found.usage) == (text, Usage(finish=found.usage.finish))


@pytest.mark.asyncio
async def test_connections_are_kept_and_no_more_are_open_than_allowed() -> None:
    async with serving(ok()) as (server, endpoint):
        for _ in range(5):
            await endpoint.complete(BODY)
        assert server.connections == 1
    async with StandIn(latency=0.05) as model, Endpoint(model.url, connections=2) as endpoint:
        await asyncio.gather(*[endpoint.complete(BODY) for _ in range(6)])
        assert (model.requests, model.peak) == (6, 2)


@pytest.mark.asyncio
async def test_a_large_request_is_sent_whole() -> None:
    text = "ä" * 1_500_000
    async with serving(ok()) as (server, endpoint):
        await endpoint.complete({"model": "m", "messages": [{"role": "user", "content": text}]})
    assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2])["messages"][0]["content"] == text


# -- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error(429), RateLimited),
        (error(429, "insufficient_quota"), LMRefused),
        (error(429, kind="exceeded_current_quota_error"), LMRefused),
        (error(400, "rate_limit_exceeded"), RateLimited),
        (error(400), LMRefused),
        (error(400, "context_length_exceeded"), LMRefused),
        (error(401), LMRefused),
        (error(402), LMRefused),
        (error(403), LMRefused),
        (error(404, "model_not_found"), LMRefused),
        (error(418), LMRefused),
        (error(408), CallTimeout),
        (error(504), CallTimeout),
        (error(500), LMUnavailable),
        (error(503, "model_not_found"), LMRefused),
        (error(502, kind="authentication_error"), LMRefused),
        (response(500, b"<html>"), LMUnavailable),
        (response(429, b'{"error": "slow down"}'), RateLimited),
        (response(429, b"[]"), RateLimited),
        (response(200, b"<html>"), LMUnavailable),
        (response(200, b"[1]"), LMUnavailable),
        (response(200, DEEP), LMUnavailable),
        (response(200, b'{"error": %s}' % DEEP), LMUnavailable),
        (response(200, b'{"error": {"message": %s, "code": %s}}' % (DEEP, DEEP)), LMUnavailable),
        (response(200, b'{"choices": %s}' % DEEP), LMUnavailable),
        (response(400, b'{"error": %s}' % DEEP), LMRefused),
        (response(400, b'{"error": {"message": %s, "type": %s}}' % (DEEP, DEEP)), LMRefused),
        (response(200, b'{"choices": {"a": 1}}'), LMUnavailable),
        (response(200, b'{"choices": [1]}'), LMUnavailable),
        (response(200, b'{"choices": [{}, {}]}'), LMRefused),
        (response(200, b'{"error": {"code": "rate_limit_exceeded"}}'), RateLimited),
        (response(200, b'{"error": {"code": "invalid_prompt", "message": "no"}}'), LMRefused),
        (response(200, b'{"error": "broken"}'), LMUnavailable),
        (b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nhalf" + CUT, LMUnavailable),
        (b"no HTTP at all\r\n\r\n", LMUnavailable),
    ],
)
async def test_an_answer_that_is_not_a_completion_raises_the_right_error(answer: bytes, kind: type[CallError]) -> None:
    with pytest.raises(CallError) as caught:
        await asked(answer)
    assert type(caught.value) is kind
    assert "127.0.0.1" in caught.value.message


@pytest.mark.asyncio
async def test_a_redirect_is_not_followed_so_that_the_key_stays_with_its_server() -> None:
    async with serving(ok("elsewhere")) as (elsewhere, at):
        with pytest.raises(LMUnavailable, match="answered 307"):
            await asked(response(307, b"", Location=f"{at.base_url}chat/completions"))
        assert elsewhere.requests == []


@pytest.mark.asyncio
async def test_the_key_is_in_no_error_whatever_the_server_says() -> None:
    said = json.dumps({"error": {"message": f"your key {KEY}"}}).encode()
    answers = [
        error(401, message=f"Incorrect API key provided: {KEY}."),
        response(500, f"<p>Bearer {KEY}".encode()),
        response(200, said),
        response(200, f"<p>Bearer {KEY}".encode()),
        response(200, json.dumps([KEY]).encode()),
        response(200, b"data: " + said + b"\n\n"),
        response(200, f"data: {KEY}\n\n".encode()),
    ]
    for room in range(540, 610):  # some of these are cut in the middle of the key
        answers += [error(401, message="x" * room + KEY), response(200, b"x" * room + KEY.encode())]
    for answer in answers:
        async with serving(answer) as (_, endpoint):
            for asking in (endpoint.complete(BODY, 5.0), anext(endpoint.stream(BODY, 5.0))):
                with pytest.raises(CallError) as caught:
                    await asking
                assert KEY[:4] not in f"{caught.value} {caught.value.args} {caught.value.as_dict()}"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({"Retry_After": "0.5"}, 0.5),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry_After": "nan"}, None),
        ({"Retry_After": "1e308"}, 3600.0),
        ({"Retry_After": "Wed, 21 Oct 9999 07:28:00 GMT"}, 3600.0),
        ({"retry_after_ms": "1e308"}, 3600.0),
        ({"Retry_After": "-1"}, None),
        ({"Retry_After": "soon"}, None),
        ({}, None),
    ],
)
async def test_the_time_to_wait_is_read_from_an_error_answer(headers: dict[str, str], seconds: float | None) -> None:
    with pytest.raises(RateLimited) as caught:
        await asked(error(429, **headers))
    assert caught.value.retry_after == seconds


@pytest.mark.asyncio
async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with Endpoint("http://127.0.0.1:9/v1") as endpoint:
        with pytest.raises(LMUnavailable, match=r"127\.0\.0\.1:9 cannot be reached"):
            await endpoint.complete(BODY)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://"])
def test_an_endpoint_without_a_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not the URL"):
        Endpoint(url)


@pytest.mark.asyncio
async def test_a_silent_server_ends_in_a_timeout_and_the_request_is_closed() -> None:
    async with serving(b"") as (server, endpoint):
        with pytest.raises(CallTimeout, match=r"no answer within 0\.1 s"):
            await endpoint.complete(BODY, 0.1)
        await asyncio.wait_for(server.closed.wait(), 30)


@pytest.mark.asyncio
async def test_a_cancelled_request_is_closed() -> None:
    async with serving(b"") as (server, endpoint):
        asking = asyncio.create_task(endpoint.complete(BODY))
        async with asyncio.timeout(30):
            while not server.requests:
                await asyncio.sleep(0)
            asking.cancel()
            await server.closed.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["length", "chunked", "gzip", "stream"])
async def test_an_answer_that_is_too_large_is_not_read_to_its_end(how: str) -> None:
    body = b'"' + b"x" * 3_000_000
    answers = {
        "length": response(200, body),
        "chunked": b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n" % (len(body), body) + b"0\r\n\r\n",
        "gzip": response(200, gzip.compress(body), Content_Encoding="gzip"),
        "stream": response(200, body),
    }
    async with serving(answers[how], max_bytes=1 << 20) as (_, endpoint):
        ask = anext(endpoint.stream(BODY)) if how == "stream" else endpoint.complete(BODY)
        with pytest.raises(InvalidOutput, match="larger than 1 MiB"):
            await ask


@pytest.mark.asyncio
async def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(ok("by proxy")) as (proxy, at):
        monkeypatch.setenv("HTTP_PROXY", at.base_url.removesuffix("/v1/"))
        monkeypatch.setenv("NO_PROXY", "")
        async with Endpoint("http://models.invalid/v1") as far:
            assert (await far.complete(BODY)).text == "by proxy"
        assert proxy.requests[0].startswith(b"POST http://models.invalid/v1/chat/completions ")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with serving(ok("direct")) as (_, near):
            assert (await near.complete(BODY)).text == "direct"


# -- in pieces -------------------------------------------------------------------------------------------------------
PROMPT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Your output fields are:\n1. `reply` (str):\nAll interactions [[ ## reply ## ]]"},
        {"role": "user", "content": "[[ ## text ## ]]\nhello"},
    ],
}


def fault(text: str) -> dict[str, Any]:
    return {**PROMPT, "messages": [PROMPT["messages"][0], {"role": "user", "content": f"[[ ## text ## ]]\n{text}"}]}


@pytest.mark.asyncio
async def test_the_pieces_of_a_stream_make_up_the_answer_and_the_last_one_has_its_usage() -> None:
    async with StandIn() as model, Endpoint(model.url, KEY) as endpoint:
        *pieces, last = [p async for p in endpoint.stream(PROMPT)]
        whole = await endpoint.complete(PROMPT)
    assert last == whole
    assert len(pieces) > 3
    assert "".join(str(p) for p in pieces) == whole.text
    assert whole.usage.output_tokens > 0


@pytest.mark.asyncio
async def test_a_stream_is_read_however_its_bytes_are_cut() -> None:
    events = [{"choices": [{"delta": {"content": c}}]} for c in ("grüß ", "dich\n")]
    text = b": a comment\r\n\r\n" + b"".join(
        b"data:" + json.dumps(e, ensure_ascii=False).encode() + b"\r\n\r\n" for e in events
    )
    text += b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n"
    async with serving(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked) as (server, endpoint):
        assert [p async for p in endpoint.stream(BODY)] == ["grüß ", "dich\n", Completion("grüß dich\n", Usage(finish="stop"))]
    sent = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
    assert sent == {**BODY, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.no_cover  # a budget of time
@pytest.mark.asyncio
async def test_a_streamed_line_without_an_end_takes_linear_time() -> None:
    def feed(size: int) -> None:
        pieces, part = Pieces("here", 1 << 30), b"x" * 64
        for _ in range(size):
            assert list(pieces.feed(part)) == []

    assert grows_linearly(feed, 10_000)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', LMUnavailable),
        (b'data: {"error": {"code": "rate_limit_exceeded", "message": "slow"}}\n\n', RateLimited),
        (b"data: {\n\n", LMUnavailable),
        (b"data: 3\n\n", LMUnavailable),
        (b"", LMUnavailable),
    ],
)
async def test_a_stream_that_fails_half_way_raises_its_error(body: bytes, kind: type[CallError]) -> None:
    async with serving(response(200, body)) as (_, endpoint):
        with pytest.raises(CallError) as caught:
            _ = [p async for p in endpoint.stream(BODY, 5.0)]
    assert type(caught.value) is kind


@pytest.mark.asyncio
async def test_a_stream_that_is_refused_or_cut_or_silent_has_the_class_of_a_whole_answer() -> None:
    async with StandIn() as model, Endpoint(model.url) as endpoint:
        wanted = {"429=3": RateLimited, "401": LMRefused, "drop": LMUnavailable, "cut": LMUnavailable, "hang": CallTimeout}
        for name, kind in wanted.items():
            with pytest.raises(CallError) as caught:
                _ = [p async for p in endpoint.stream(fault(f"standin:{name}"), 0.3)]
            assert type(caught.value) is kind, name


@pytest.mark.asyncio
async def test_closing_the_iterator_of_a_stream_closes_the_request() -> None:
    first = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    endless = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n" % (len(first), first)
    async with serving(endless) as (server, endpoint):
        async with aclosing(endpoint.stream(BODY)) as pieces:
            assert await anext(pieces) == "a"
        await asyncio.wait_for(server.closed.wait(), 30)
