"""Events that come over HTTP: published by whoever may, and webhooks, whose signature says who sent them."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from dspex.bus import codecs, subjects
from dspex.bus.codecs import cloud_events
from dspex.bus.errors import ConfigError
from dspex.bus.message import new_id
from dspex.bus.port import NewMessage
from dspex.bus.settings.server import HookSettings, secrets
from dspex.engine.client import publish as storing
from dspex.engine.client.run import Run
from dspex.engine.gateway.access import own_key
from dspex.engine.gateway.entrance import Entrance, duration_of, mapping, query_of

SIGNED_WITHIN: Final = 300.0  # seconds between a signature's time and now, of those that name a time; else it may be a copy
_CLOUD: Final = "ce-"  # headers of a CloudEvent in binary mode


class Publishing:
    """`POST /v1/publish/{subject}` and `POST /v1/hooks/{name}`."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    async def publish(self, request: Request) -> Response:
        """Store an event; 202 with its run once it is stored."""
        subject = request.path_params["subject"]
        caller = self._entrance.access.to_use(request, "subjects", subject)
        if not subjects.is_subject(subject) or subjects.is_own(subject):  # which ">" would take, too
            raise HTTPException(404, f"{subject!r} is no subject of events: tokens joined by dots, without wildcards")
        media = request.headers.get("content-type", codecs.JSON).partition(";")[0].strip().lower()
        if media not in (codecs.JSON, codecs.MSGPACK, codecs.ARROW, cloud_events.STRUCTURED):
            raise HTTPException(415, f"{media or 'nothing'} is no kind of event: send {codecs.JSON}, or a CloudEvent")
        body = await self._entrance.body(request)
        cloud = {name: value for name, value in request.headers.items() if name.startswith(_CLOUD)}
        event = cloud_events.read(media, cloud, body)  # what cannot be read is told to who sent it, and not to a dead letter
        codecs.decode(body if event is None else event.data, media if event is None else event.content_type)
        query, id = query_of(request, "key", "session", "time", "at", "after"), request.headers.get("idempotency-key")
        when = {name: _time(name, query[name]) for name in ("time", "at") if name in query}
        waits = storing.waiting(when.get("time"), when.get("at"), duration_of(query, "after"))
        if id is None and event is not None:  # the specification has these two name an event
            id = f"{event.attributes.get('source')}#{event.attributes.get('id')}"
        id = new_id() if id is None else own_key(caller, subject, id)
        own = storing.headers_of(id, query.get("key"), query.get("session"), when.get("time"), cloud, media, waits)
        return _stored(await self._store(subject, body, own))

    async def _store(self, subject: str, body: bytes, headers: Mapping[str, str]) -> Run:
        client = await self._entrance.client()
        message = NewMessage(subject, body, dict(headers))
        return await storing.publish(client.bus, client.app, message, self._entrance.settings.engine.claim_check_above)

    # -- webhooks
    async def hook(self, request: Request) -> Response:
        """Store what a webhook says, if its signature is right."""
        hook = self._entrance.hooks.get(name := request.path_params["name"])
        if hook is None:
            raise HTTPException(404, f"there is no webhook {name!r} here")
        body = await self._entrance.body(request)
        keys = [key.encode() for key in secrets(hook.secret_env, f"http.hooks.{name}.secret_env")]
        if not is_signed(hook, request.headers, body, keys):
            raise HTTPException(401, f"this is not signed as {hook.scheme} signs with the secret of webhook {name}")
        said = mapping(codecs.decode(body, codecs.JSON))
        if hook.scheme == "slack" and said.get("type") == "url_verification":
            return PlainTextResponse(str(said.get("challenge", "")))
        event, id = _of_hook(hook, request.headers, said)
        sent = None if id is None else f"{name}:{id}"
        more = {} if event is None else {"webhook-event": event}
        own = storing.headers_of(sent or new_id(), None, None, None, more, codecs.JSON)
        return _stored(await self._store(hook.subject, body, own))


def _time(name: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        fix = f"{name}=2026-01-31T09:00:00Z, with %2B for a plus"
        raise ConfigError(f"{name}={text!r} is no time", code="DX105", fix=fix) from None


def _stored(run: Run) -> Response:
    found = {"run": run.id, "stream": run.stream, "seq": run.sequence, "duplicate": run.duplicate}
    return JSONResponse(found, 202, {"Location": f"/v1/runs/{run.id}"})


def _of_hook(hook: HookSettings, headers: Headers, said: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What kind of event it is, and what names the delivery, which comes again where we did not answer."""
    if hook.scheme == "github":
        return headers.get("x-github-event"), headers.get("x-github-delivery") or None
    kind = said.get("type") if hook.scheme == "stripe" else mapping(said.get("event") or {}).get("type")
    id = said.get("id" if hook.scheme == "stripe" else "event_id")
    return (kind if isinstance(kind, str) else None), (id if isinstance(id, str) and id else None)


def is_signed(hook: HookSettings, headers: Headers, body: bytes, keys: list[bytes], now: float | None = None) -> bool:
    """Whether one of the keys has signed this, as the scheme says:

    * github: `X-Hub-Signature-256: sha256=<hex>`, of the body.
    * stripe: `Stripe-Signature: t=<seconds>,v1=<hex>[,v1=…]`, of `<seconds>.<body>`.
    * slack: `X-Slack-Signature: v0=<hex>` and `X-Slack-Request-Timestamp`, of `v0:<seconds>:<body>`.

    `now`: seconds since 1970. Sources: docs.github.com "Validating webhook deliveries", docs.stripe.com "Verify webhook
    signatures manually", docs.slack.dev "Verifying requests from Slack".
    """
    at = time.time() if now is None else now
    if hook.scheme == "github":
        return _one_of([headers.get("x-hub-signature-256", "").removeprefix("sha256=")], body, keys)
    if hook.scheme == "slack":
        said, given = headers.get("x-slack-request-timestamp", ""), [headers.get("x-slack-signature", "").removeprefix("v0=")]
        signed = f"v0:{said}:".encode() + body
    else:
        parts = [part.strip().partition("=") for part in headers.get("stripe-signature", "").split(",")]
        said = next((value for name, _, value in parts if name == "t"), "")
        given, signed = [value for name, _, value in parts if name == "v1"], f"{said}.".encode() + body
    return said.isascii() and said.isdigit() and abs(at - int(said)) <= SIGNED_WITHIN and _one_of(given, signed, keys)


def _one_of(given: list[str], signed: bytes, keys: list[bytes]) -> bool:
    wanted = [hmac.new(key, signed, hashlib.sha256).hexdigest().encode() for key in keys]
    return sum(hmac.compare_digest(one.encode(), right) for one in given for right in wanted) > 0
