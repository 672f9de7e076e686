"""A stand-in for a language model's server: speaks the OpenAI chat API over real HTTP, answers by rule, fails on demand.

    python tests/support/standin.py --port 0 [--latency 0.02] [--answers JSON]       prints {"url": "http://127.0.0.1:PORT/v1"}
    async with StandIn() as server: server.url, server.stats()

It answers in the format that DSPy's adapter asks for (`[[ ## field ## ]]`, JSON or XML), in pieces if asked to. The value of
each output field is a function of its type and of the text alone (`answer`), so that an oracle can say beforehand what must
come out. `text` is the input field of that name, else the first one.

Faults are asked for in the text itself, or by `fault(text, "429=1x2")`, or by POST /faults {"text": "429=1x2"}:

    standin:429=1x2   the first 2 times: 429 with Retry-After: 1; 429=1@2: the second time alone
    standin:500  standin:503=2  standin:400  standin:401      that status
    standin:nonsense  text that no adapter can parse      standin:garbage  a body that is no JSON
    standin:slow=0.5  answer after half a second          standin:hang     never      standin:drop  close the connection
    standin:cut  (in pieces only) close the connection in the middle
    standin:trickle=0.02  (in pieces only) so long between two pieces
    standin:gate  the answer when `gate` is set; in pieces: half of it at once, and the rest then
    standin:length  standin:content_filter  half of the answer, with that finish_reason
    standin:refusal  no content, and a message.refusal

GET /stats: requests, answers by kind, distinct texts, texts asked more than once, most requests at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from xml.sax.saxutils import escape
from zlib import crc32

_FAULT = re.compile(r"standin:(\w+?)(?:=([\d.]+))?(?:x(\d+)|@(\d+))?(?=\W|$)")
_OUTPUTS = re.compile(r"Your output fields are:\n(.*?)\nAll interactions", re.S)
_FIELD = re.compile(r"^\d+\. `(\w+)` \((.*?)\):", re.M)
_ELEMENT = re.compile(r"^<(\w+)>\n(.*?)\n</\1>", re.S | re.M)
_SECTION = re.compile(r"^\[\[ ## (\w+) ## \]\]\n(.*?)(?=\n\n\[\[ ## |\n\nRespond with|\Z)", re.S | re.M)
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}


Response = tuple[int, "bytes | AsyncIterator[bytes]", dict[str, str]]


def answer(type_: str, name: str, text: str) -> Any:
    """What the server says for an output field of this type, for this text: the rule that oracles use."""
    number = crc32(text.encode())
    if type_.startswith("Literal["):
        choices = list(re.findall(r"'([^']*)'|\"([^\"]*)\"|(-?\d+)", type_))
        found = [a or b or int(c) for a, b, c in choices]
        return found[number % len(found)]
    if type_ == "int":
        return number % 5 + 1
    if type_ == "float":
        return number % 100 / 100
    if type_ == "bool":
        return number % 2 == 0
    if type_.startswith("list"):
        return text.split()[:3]
    if type_.startswith("dict"):
        return {}
    return f"{name} of {text[:60]}"


def intent(text: str, choices: list[str]) -> str:
    """`answer` for a Literal of these choices."""
    return choices[crc32(text.encode()) % len(choices)]


def urgency(text: str) -> int:
    """`answer` for an int: 1 to 5."""
    return crc32(text.encode()) % 5 + 1


@lru_cache(256)
def output_fields(system: str) -> tuple[tuple[str, str], ...]:
    """(name, type) of the output fields that the adapter's system message lists."""
    block = _OUTPUTS.search(system)
    return tuple(_FIELD.findall(block[1])) if block else ()


@dataclass
class StandIn:
    """The server. `latency`: seconds that every answer takes."""

    latency: float = 0.0
    port: int = 0
    requests: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)  # by output field: what it says in place of the rule's answer
    replies: dict[str, str] = field(default_factory=dict)  # by text: what the model says instead of the rule's answer
    running: int = 0
    peak: int = 0
    last_key: str = ""
    bodies: list[dict[str, Any]] | None = None  # a list: every request is kept in it
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> StandIn:
        self._loop = loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[_Connection] = set()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for connection in list(self._open):
            connection.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def go_on(self) -> None:
        """Set `gate`, from any thread."""
        self._loop.call_soon_threadsafe(self.gate.set)

    def fault(self, text: str, what: str) -> None:
        """Fail for this text: "429=1x2", "500", "hang", …"""
        self.faults[text] = f"standin:{what}"

    def stats(self) -> dict[str, Any]:
        """What was asked and answered so far."""
        repeats = sum(1 for n in list(self.texts.values()) if n > 1)
        return {
            "requests": self.requests,
            "kinds": dict(self.kinds),
            "distinct": len(self.texts),
            "repeated": repeats,
            "running": self.running,
            "peak": self.peak,
        }

    async def respond(self, method: str, path: str, body: bytes) -> Response | None:
        """Status, body and headers; None to close the connection without an answer."""
        if method == "GET":
            found = path == "/stats"
            return (200, json.dumps(self.stats()).encode(), {}) if found else (404, b"{}", {})
        if path == "/faults":
            self.faults |= {t: f"standin:{w}" for t, w in json.loads(body).items()}
            return 200, b"{}", {}
        self.requests += 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            return await self._complete(json.loads(body))
        finally:
            self.running -= 1

    async def _complete(self, request: dict[str, Any]) -> Response | None:
        if self.bodies is not None:
            self.bodies.append(request)
        messages = [(m["role"], text_of(m["content"])) for m in request["messages"]]
        system = next((t for r, t in messages if r in ("system", "developer")), "")
        user = messages[-1][1]
        sections = dict((_ELEMENT if "[[ ## " not in system else _SECTION).findall(user))
        text = (sections.get("text") or next(iter(sections.values()), user)).strip()
        self.texts[text] += 1
        kind, value = self._fault(text)
        self.kinds[kind] += 1
        if kind == "hang":
            await asyncio.Event().wait()
        if kind == "drop":
            return None
        if kind == "gate" and not request.get("stream"):
            await self.gate.wait()
        delay = self.latency + (float(value or 1) if kind == "slow" else 0.0)
        if delay:
            await asyncio.sleep(delay)
        if kind.isdigit():
            headers = {"Retry-After": value} if value else {}
            said = f"the stand-in was asked for {kind} with {self.last_key}"  # as some servers do it
            error = {"error": {"message": said, "type": "standin", "code": kind}}
            return int(kind), json.dumps(error).encode(), headers
        if kind == "garbage":
            return 200, b"<html>this is no answer</html>", {}
        content = "I would rather talk about the weather." if kind == "nonsense" else _content(system, user, text, self.answers)
        content = self.replies.get(text, content)
        if kind in ("length", "content_filter"):
            content = content[: len(content) // 2]
        done = _completion(request.get("model", ""), content, system + user, kind)
        if not request.get("stream"):
            return 200, done, {}
        events = _pieces(content, done, cut=kind == "cut")
        slow = self._slowly(events, kind, float(value or 0)) if kind in ("trickle", "gate") else None
        return (200, slow or "".join(events).encode(), _EVENTS)

    async def _slowly(self, events: list[str], kind: str, pause: float) -> AsyncIterator[bytes]:
        for n, event in enumerate(events):
            if kind == "trickle":
                await asyncio.sleep(pause)
            elif n == len(events) // 2:
                await self.gate.wait()
            yield event.encode()

    def _fault(self, text: str) -> tuple[str, str]:
        match = _FAULT.search(self.faults.get(text, text))
        if match is None:
            return "ok", ""
        kind, value, times, at = match.groups()
        if (times and self.texts[text] > int(times)) or (at and self.texts[text] != int(at)):
            return "ok", ""
        return kind, value or ""


def text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _content(system: str, user: str, text: str, answers: dict[str, Any]) -> str:
    values = {name: answers.get(name, answer(type_, name, text)) for name, type_ in output_fields(system)}
    if "Respond with a JSON object" in user:
        return json.dumps(values)
    if "[[ ## " not in system:
        return "\n".join(f"<{n}>\n{escape(v if isinstance(v, str) else json.dumps(v))}\n</{n}>" for n, v in values.items())
    parts = [f"[[ ## {n} ## ]]\n{v if isinstance(v, str) else json.dumps(v)}" for n, v in values.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def _completion(model: str, content: str, prompt: str, kind: str = "ok") -> bytes:
    tokens = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(content) // 4}
    details = {"prompt_tokens_details": {"cached_tokens": tokens["prompt_tokens"] // 2}} if "cached" in prompt else {}
    said: dict[str, Any] = {"content": content} if kind != "refusal" else {"content": None, "refusal": REFUSAL}
    end = kind if kind in ("length", "content_filter") else "stop"
    return json.dumps(
        {
            "id": "standin",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "finish_reason": end, "message": {"role": "assistant", **said}}],
            "usage": {**tokens, "total_tokens": sum(tokens.values()), **details},
        }
    ).encode()


REFUSAL = "I am sorry, I cannot help with that."
_EVENTS = {"Content-Type": "text/event-stream"}
_IDS = itertools.count(1)  # of answers in pieces


def _pieces(content: str, done: bytes, *, cut: bool) -> list[str]:
    """An answer as server-sent events, seven characters at a time, and its usage last. `cut`: only the first half."""
    head = {"id": f"standin-{next(_IDS)}", "object": "chat.completion.chunk", "model": json.loads(done)["model"]}
    refused = "refusal" in json.loads(done)["choices"][0]["message"]
    texts = [] if refused else [content[i : i + 7] for i in range(0, len(content), 7)]
    events: list[Any] = [{**head, "choices": [{"index": 0, "delta": {"content": t}}]} for t in texts]
    if cut:
        events = events[: len(events) // 2]
    else:
        (choice,) = json.loads(done)["choices"]
        said = choice["message"].get("refusal")
        delta, end = {"refusal": said} if said else {}, choice["finish_reason"]
        events.append({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]})
        events.append({**head, "choices": [], "usage": json.loads(done)["usage"]})
    lines = [f"data: {json.dumps(e)}\n\n" for e in events]
    return lines if cut else [*lines, "data: [DONE]\n\n"]


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, one request at a time a connection: as little as a client of an API needs."""

    transport: asyncio.Transport

    def __init__(self, server: StandIn) -> None:
        self._server, self._buffer = server, b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server._open.discard(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._next()

    def _next(self) -> None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:] if b": " in line)
        size = int(headers.get(b"content-length", 0))
        if len(rest) < size:
            return
        self._buffer = rest[size:]
        self._server.last_key = headers.get(b"authorization", b"").decode()
        method, path = lines[0].decode().split(" ")[:2]
        self._task = asyncio.get_running_loop().create_task(self._answer(method, path, rest[:size]))
        self._server._tasks.add(self._task)
        self._task.add_done_callback(self._server._tasks.discard)

    async def _answer(self, method: str, path: str, body: bytes) -> None:
        response = await self._server.respond(method, path, body)
        if response is None:
            self.transport.abort()
            return
        status, data, headers = response
        reason = _REASONS.get(status, "Error")
        more = "".join(f"{k}: {v}\r\n" for k, v in {"Content-Type": "application/json", **headers}.items())
        head = f"HTTP/1.1 {status} {reason}\r\n{more}"
        if isinstance(data, bytes):
            self.transport.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        else:
            await self._stream(head, data)
        self._task = None
        if self._buffer:
            self._next()

    async def _stream(self, head: str, parts: AsyncIterator[bytes]) -> None:
        self.transport.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        self._server.running += 1
        try:
            async for part in parts:
                self.transport.write(b"%x\r\n%s\r\n" % (len(part), part))
        finally:
            self._server.running -= 1
        self.transport.write(b"0\r\n\r\n")


async def _main(port: int, latency: float, answers: dict[str, Any]) -> None:
    async with StandIn(latency, port, answers=answers) as server:
        sys.stdout.write(json.dumps({"url": server.url}) + "\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with whoever started it


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a stand-in for a language model's server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--answers", type=json.loads, default={}, help="by output field, as JSON")
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.port, arguments.latency, arguments.answers))
