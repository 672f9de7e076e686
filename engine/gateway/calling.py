"""Calls over HTTP: asked and answered, streamed as server-sent events or over a WebSocket, and as chat front ends ask.

Who goes away ends its call, and with it the request to the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import nullcontext
from typing import Any, Final

import orjson
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from dspex.bus.errors import DecodeError, DspexError
from dspex.bus.settings.duration import seconds
from dspex.bus.tasks import first
from dspex.engine.client.call import Result
from dspex.engine.client.client import Client
from dspex.engine.gateway.access import Bearer, own_key
from dspex.engine.gateway.entrance import Called, Entrance, duration_of, known, mapping, query_of, while_there
from dspex.engine.gateway.formats.chat import AgUi, Completions, UiMessages, conversation, openai_error
from dspex.engine.gateway.formats.events import Format, Happened, OwnEvents, as_object, written
from dspex.engine.gateway.problems import status_of
from dspex.engine.gateway.shapes import CallShape

STREAM: Final = "text/event-stream"
PING: Final = 15.0  # seconds between two signs of life on a stream, so that no proxy takes it for dead
TIMEOUT: Final = 60.0  # seconds that a call has where the request says nothing
_UNUSABLE: Final = 1008  # why a WebSocket is closed: what was sent breaks the rules


class Calling:
    """`POST /v1/call/{name}` and its relatives."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    def _wanted(self, request: HTTPConnection, name: str) -> tuple[Called, Bearer | None]:
        caller = self._entrance.access.to_use(request, "calls", name)
        return self._entrance.calls[name], caller

    async def call(self, request: Request) -> Response:
        """Ask, and answer; as a stream where the request accepts one."""
        what, caller = self._wanted(request, request.path_params["name"])
        inputs, query = await self._entrance.fields(request), query_of(request, "timeout", "session")
        client, limit, session = await self._entrance.client(), duration_of(query, "timeout") or TIMEOUT, query.get("session")
        key = request.headers.get("idempotency-key")
        id = None if key is None else own_key(caller, request.path_params["name"], key)
        if STREAM in request.headers.get("accept", ""):
            if id is not None and session is None:
                raise HTTPException(400, "Idempotency-Key names a stored call, which is not streamed, or a turn: add ?session=")
            return _streamed(OwnEvents(), self._happens(client, what, inputs, limit, session, caller, id))
        with _open(caller):
            asking = _answer(client, what, inputs, limit, session, id)
            return _json((await while_there(request, asking)).as_dict())

    async def _happens(
        self,
        client: Client,
        what: Called,
        inputs: Mapping[str, Any],
        timeout: float,
        session: str | None,
        caller: Bearer | None,
        id: str | None = None,
    ) -> AsyncGenerator[Happened]:
        """What happens in a call, its result or its error at last. Closing it early cancels the call.

        The last is told once the call is over here, too: who reads it may ask on at once, and may have one call open.
        """
        last: Result[Any] | DspexError
        with _open(caller):
            try:
                if session is not None:
                    asked = client.session(session).stream(what, inputs, timeout=timeout, id=id)
                else:
                    asked = client.stream(what, inputs, timeout=timeout)
                async with asked as answer:
                    async for event in answer.events():
                        yield event
                    last = await answer.result()
            except DspexError as error:
                last = error
        yield last

    async def socket(self, socket: WebSocket) -> None:
        """Calls over a WebSocket, one after the other: `{"inputs": {…}, "timeout": "30s", "session": "…"}` is answered by the
        same objects as `dspex call --stream --json` prints. Closing it ends the call.
        """
        try:
            what, caller = self._wanted(socket, socket.path_params["name"])
            client = await self._entrance.client()
        except HTTPException as refused:
            await socket.send_denial_response(JSONResponse({"detail": refused.detail}, refused.status_code))
            return
        await socket.accept()
        try:
            said: str | None = None
            while True:
                asked = _asked(await _heard(socket) if said is None else said)
                known(asked, ("inputs", "timeout", "session"))
                limit, session = seconds(asked.get("timeout") or TIMEOUT), asked.get("session")
                happens = self._happens(client, what, mapping(asked.get("inputs")), limit, session, caller)
                said = await _told(socket, happens)
        except WebSocketDisconnect:
            return
        except (DspexError, HTTPException) as refused:
            why = refused.message if isinstance(refused, DspexError) else refused.detail
            await socket.close(_UNUSABLE, why[:100])

    # -- chat front ends
    async def completions(self, request: Request) -> Response:
        """OpenAI's chat completions: `model` is the name of a call."""
        body = await self._entrance.fields(request)
        model = str(body.get("model", ""))
        what, caller = self._wanted(request, model)
        try:
            client = await self._entrance.client()
            shape = CallShape.of(await client.resolve(what))
            said = conversation(body)
            inputs = shape.asked(said.turns, said.more)
            options = body.get("stream_options")
            form = Completions(shape, model, isinstance(options, dict) and bool(options.get("include_usage")))
            if body.get("stream"):
                return _streamed(form, self._happens(client, what, inputs, TIMEOUT, None, caller))
            with _open(caller):
                return _json(form.whole(await while_there(request, _answer(client, what, inputs, TIMEOUT, None, None))))
        except DspexError as error:
            return _json(openai_error(error), status_of(error))

    async def models(self, request: Request) -> Response:
        """The calls that there are for who asks, as models."""
        caller = self._entrance.access.caller(request)
        names = [name for name in self._entrance.calls if caller is None or caller.named("calls", name)]
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "dspex"} for name in names]
        return _json({"object": "list", "data": listed})

    async def ag_ui(self, request: Request) -> Response:
        """AG-UI's run of an agent."""
        return await self._chat(request, "ag-ui")

    async def ai_sdk(self, request: Request) -> Response:
        """The AI SDK's `useChat`."""
        return await self._chat(request, "ai-sdk")

    async def _chat(self, request: Request, kind: str) -> Response:
        what, caller = self._wanted(request, request.path_params["name"])
        said = conversation(await self._entrance.fields(request))
        client = await self._entrance.client()
        shape = CallShape.of(await client.resolve(what))
        inputs = shape.asked(said.turns, said.more)
        form: Format = AgUi(shape, said) if kind == "ag-ui" else UiMessages(shape)
        return _streamed(form, self._happens(client, what, inputs, TIMEOUT, None, caller))


def _open(caller: Bearer | None) -> Any:
    return nullcontext() if caller is None else caller.calling()


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(value, default=str), status, media_type="application/json")


def _streamed(form: Format, happens: AsyncGenerator[Happened]) -> Response:
    return EventSourceResponse(written(form, happens), ping=int(PING), headers=dict(form.headers), sep="\n")


async def _answer(
    client: Client, what: Called, inputs: Mapping[str, Any], timeout: float, session: str | None, id: str | None
) -> Result[Any]:
    """The answer to a call. With `id`, which names it, the same call again is the same answer: it is a turn of its session, or
    else a submitted call.
    """
    if session is not None:
        return await client.session(session).call(what, inputs, timeout=timeout, id=id)
    if id is None:
        return await client.call(what, inputs, timeout=timeout)
    return await (await client.submit(what, inputs, id=id)).result(timeout)


def _asked(text: str) -> dict[str, Any]:
    try:
        return mapping(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise DecodeError(f"this is no JSON: {error}", fix='send {"inputs": {…}}') from None


async def _told(socket: WebSocket, happens: AsyncGenerator[Happened]) -> str | None:
    """Tell a socket what happens in a call, and listen to it meanwhile: what it has asked next, if it has.

    Who reads the answer may ask on at once, before this side knows that all has been sent: that is the next call, not a second
    one. Raises WebSocketDisconnect once the socket is gone, DecodeError for a question before the answer.
    """
    asked: list[str] = []
    answered, told = False, asyncio.Event()

    async def tell() -> None:
        nonlocal answered
        async for what in happens:
            answered = isinstance(what, (Result, DspexError))
            await socket.send_text(orjson.dumps(as_object(what), default=str).decode())
        told.set()

    async def listen() -> None:
        asked.append(await _heard(socket))
        if not answered:
            raise DecodeError("one call at a time: the last one is not answered yet", fix="open another socket")
        await told.wait()

    try:
        await first(tell(), listen())
    finally:
        await happens.aclose()
    return asked[0] if asked else None


async def _heard(socket: WebSocket) -> str:
    """The next message of a socket. Raises WebSocketDisconnect, and DecodeError for one that is no text."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"], message.get("reason"))
    if (text := message.get("text")) is None:
        raise DecodeError("this message is no text", fix='send {"inputs": {…}} as text')
    return str(text)
