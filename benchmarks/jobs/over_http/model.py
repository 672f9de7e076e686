"""A model's server that answers at once, in one piece or in as many events as there are words. Prints its URL.

python -m jobs.over_http.model
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from calling.model import BEGIN, END, HEADER, event, serve

WORDS = [f"word{n} " for n in range(8)]
TEXT = HEADER + "".join(WORDS) + "\n\n[[ ## completed ## ]]"
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


_STREAM = BEGIN + b"".join([event(HEADER), *map(event, WORDS)]) + END


async def _answered(asked: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(_STREAM if asked.get("stream") else _ANSWER)
    await writer.drain()


if __name__ == "__main__":
    asyncio.run(serve(_answered))
