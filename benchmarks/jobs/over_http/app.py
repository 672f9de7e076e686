"""What people write without dspex: a FastAPI app that stores events with nats-py, and asks the model's server with httpx.

BENCH_MODEL=URL BENCH_NATS=URL uvicorn jobs.over_http.app:app
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import nats
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

SUBJECT = "plain.in"
PROMPT = """Your input fields are:
1. `text` (str):
Your output fields are:
1. `reply` (str):
All interactions will be structured in the following way, with the appropriate values filled in.

[[ ## text ## ]]
{text}

[[ ## reply ## ]]
{reply}

[[ ## completed ## ]]"""
_REPLY = re.compile(r"\[\[ ## reply ## \]\]\n(.*?)\n\n\[\[ ## completed", re.DOTALL)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Connections that all requests share."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    nc = await nats.connect(os.environ["BENCH_NATS"])
    await nc.jetstream().add_stream(name="PLAIN", subjects=[SUBJECT])
    async with httpx.AsyncClient(base_url=os.environ["BENCH_MODEL"], limits=limits) as client:
        app.state.model, app.state.js = client, nc.jetstream()
        yield
    await nc.close()


app = FastAPI(lifespan=lifespan)


def _asked(text: str, *, stream: bool) -> dict[str, Any]:
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": f"[[ ## text ## ]]\n{text}"}]
    return {"model": "bench", "messages": messages, "stream": stream}


@app.post("/publish", status_code=202)
async def publish(event: dict[str, str]) -> dict[str, int]:
    """Store an event."""
    ack = await app.state.js.publish(SUBJECT, json.dumps(event).encode())
    return {"seq": ack.seq}


@app.post("/call")
async def call(inputs: dict[str, str]) -> dict[str, str]:
    """Ask the model, and read its answer."""
    answer = await app.state.model.post("/chat/completions", json=_asked(inputs["text"], stream=False))
    found = _REPLY.search(answer.raise_for_status().json()["choices"][0]["message"]["content"])
    assert found is not None
    return {"reply": found[1].strip()}


@app.post("/stream")
async def stream(inputs: dict[str, str]) -> StreamingResponse:
    """Hand on what the model says, as server-sent events."""
    return StreamingResponse(_pieces(inputs["text"]), media_type="text/event-stream")


async def _pieces(text: str) -> AsyncIterator[str]:
    asked = app.state.model.stream("POST", "/chat/completions", json=_asked(text, stream=True))
    async with asked as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                word = json.loads(line[6:])["choices"][0]["delta"]["content"]
                if not word.strip().startswith("[["):
                    yield f"event: chunk\ndata: {json.dumps({'text': word})}\n\n"
    yield "event: result\ndata: {}\n\n"
