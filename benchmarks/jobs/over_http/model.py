"""A model's server that answers at once, in one piece or in as many events as there are words. Prints its URL.

python -m jobs.over_http.model
"""

from __future__ import annotations

import asyncio
import json

WORDS = [f"word{n} " for n in range(8)]
TEXT = "[[ ## reply ## ]]\n" + "".join(WORDS) + "\n\n[[ ## completed ## ]]"
USAGE = {"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52}
_MESSAGE = {"role": "assistant", "content": TEXT}
_WHOLE = json.dumps(
    {
        "id": "m",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}],
        "usage": USAGE,
    }
).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_WHOLE), _WHOLE)


def _event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    body = b"data: " + json.dumps({"id": "m", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}).encode()
    return b"%x\r\n%s\n\n\r\n" % (len(body) + 2, body)


_PIECES = [_event("[[ ## reply ## ]]\n"), *map(_event, WORDS), _event("\n\n[[ ## completed ## ]]", "stop")]
_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(_PIECES)
    + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            asked = json.loads(await reader.readexactly(size))
            writer.write(_STREAM if asked.get("stream") else _ANSWER)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # who asked has gone
    finally:
        writer.close()


async def main() -> None:
    """Serve until ended."""
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
