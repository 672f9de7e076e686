"""A model's server that streams: the header of the field at once, then a word every PAUSE seconds. Prints its URL.

python -m calling.model
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

HEADER = "[[ ## reply ## ]]\n"
WORDS = [f"word{n} " for n in range(40)]
PAUSE = 0.02
BEGIN: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Answer = Callable[[Mapping[str, Any], asyncio.StreamWriter], Awaitable[None]]


def event(text: str, finish: str | None = None) -> bytes:
    """A piece of a streamed reply, as a chunk."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    body = b"data: " + json.dumps({"id": "m", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}).encode()
    return b"%x\r\n%s\n\n\r\n" % (len(body) + 2, body)


END: Final = event("\n\n[[ ## completed ## ]]", "stop") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


async def serve(answer: Answer) -> None:
    """Have each request answered, until ended. Prints the URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await answer(json.loads(await reader.readexactly(size)), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # who asked has gone
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


async def word_by_word(asked: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
    """Stream the words."""
    writer.write(BEGIN)
    writer.write(event(HEADER + WORDS[0]))
    for word in WORDS[1:]:
        await asyncio.sleep(PAUSE)
        writer.write(event(word))
        await writer.drain()  # raises where who asked has gone
    writer.write(END)


if __name__ == "__main__":
    asyncio.run(serve(word_by_word))
