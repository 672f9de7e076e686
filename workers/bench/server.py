"""What stands for a language model in `dspex bench`: `python -m dspex.workers.bench.server`, a process of its own.

It speaks as much of the OpenAI chat API as a client needs, answers at once, and always the same: the name of the model
picks the answer. GET /last gives the bytes of the last request back, so that they can be sent again without a client.
It says where it listens on stdout, and ends when stdin does.

The models have the names of real ones: for a name that is not in its price list, DSPy looks through the whole list at every
call, which takes 3 ms and would flatter whoever is compared with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

REPLIES = {
    "gpt-4o-mini": "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]",
    "gpt-4o": "[[ ## reasoning ## ]]\nIt is the capital.\n\n[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]",
}


def _completion(model: str) -> bytes:
    message = {"role": "assistant", "content": REPLIES[model]}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    data = {"id": "bench", "object": "chat.completion", "created": 0, "model": model, "choices": choices, "usage": usage}
    return _response("200 OK", json.dumps(data).encode())


def _response(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


_COMPLETIONS = {model: _completion(model) for model in REPLIES}
_NOT_FOUND = _response("404 Not Found", b'{"error": {"message": "there is no such model", "type": "bench", "code": "404"}}')


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, one request after the other."""

    last = b""
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (size := _size(self._buffer)) and len(self._buffer) >= size:
            request, self._buffer = self._buffer[:size], self._buffer[size:]
            self.transport.write(self._answer(request))

    def _answer(self, request: bytes) -> bytes:
        if request.startswith(b"GET /last "):
            return _response("200 OK", _Connection.last)
        _Connection.last = request
        body = request.partition(b"\r\n\r\n")[2]
        return _COMPLETIONS.get(json.loads(body or b"{}").get("model"), _NOT_FOUND)


def _size(buffer: bytes) -> int:
    """Bytes of the first request, head and body; 0 while its head is not whole."""
    head, whole, _ = buffer.partition(b"\r\n\r\n")
    if not whole:
        return 0
    lengths = (line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return len(head) + len(whole) + int(next(lengths, b"0"))


@asynccontextmanager
async def model_server() -> AsyncGenerator[str, None]:
    """The server in a process of its own, for as long as the block runs: its address, with /v1."""
    command = [sys.executable, "-m", "dspex.workers.bench.server", str(os.getpid())]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())["url"]
    finally:
        process.stdin.close()
        await process.wait()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}/v1"}), flush=True)  # noqa: T201  the parent reads it
    await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    from dspex.bus.local.processes import die_with

    die_with(int(sys.argv[1]))
    asyncio.run(_main())
