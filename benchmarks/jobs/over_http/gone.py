"""How long a request to the model goes on after who asked the gateway has gone away, in the middle of a call or of a stream."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

ASKED: Final = {"call": "application/json", "stream": "text/event-stream"}  # part → what is accepted
LONGEST: Final = 60.0  # seconds; what takes longer never ends


class Held:
    """A model's server that answers nobody. `asked`: each request, as a future of when who asked was gone."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[float]] = asyncio.Queue()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: it ends with its first request, however that ends."""
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[float] = loop.create_future()
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.asked.put_nowait(gone)
            await reader.read()  # the body, and then the end
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            gone.set_result(loop.time())
            writer.close()


@asynccontextmanager
async def held() -> AsyncGenerator[tuple[Held, str]]:
    """The server, and its URL."""
    made = Held()
    server = await asyncio.start_server(made.connected, "127.0.0.1", 0)
    async with server:
        yield made, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def seconds_of(model: Held, url: str, path: str, part: str, times: int) -> list[float]:
    """From when the connection is closed until the model's server sees the end of its own, so many times."""
    where, found = urlsplit(url), list[float]()
    for number in range(times):
        _, writer = await asyncio.open_connection(where.hostname, where.port)
        body = json.dumps({"text": f"{part} {number}"}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: gone\r\nContent-Type: application/json\r\nAccept: {ASKED[part]}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(LONGEST):
            gone = await model.asked.get()
            began = asyncio.get_running_loop().time()
            writer.close()
            found.append(await gone - began)
        print(f"  {part}, gone: {1000 * found[-1]:.1f} ms", file=sys.stderr)
    return found


def figures(found: list[float]) -> dict[str, Any]:
    """In milliseconds: the middle, and the longest."""
    return {"p50": 1000 * statistics.median(found), "most": 1000 * max(found), "times": len(found)}
