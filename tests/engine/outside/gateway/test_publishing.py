"""Events over HTTP: stored once, refused where they cannot be read, and webhooks by their signature."""

from __future__ import annotations

import hashlib
import hmac
import json
import time

import httpx
import msgpack
import pytest
from cli_bench import Project
from gateway_bench import as_
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from dspex.asgi import app
from dspex.bus.errors import ConfigError
from dspex.bus.settings.model import Settings
from dspex.bus.settings.server import HookSettings
from dspex.engine.gateway.publishing import SIGNED_WITHIN, is_signed


def shown(project: Project, run: str) -> dict[str, object]:
    return project.here("--json", "runs", "show", run).objects()[0]


def test_an_event_is_stored_and_its_run_is_told(http: httpx.Client, project: Project) -> None:
    said = http.post(f"/v1/publish/{project.input}?key=k1&session=anna", json={"text": "hello"}, headers=as_("site"))
    assert said.status_code == 202, said.text
    found = said.json()
    assert said.headers["location"] == f"/v1/runs/{found['run']}"
    assert (found["duplicate"], shown(project, found["run"])["topology"]) == (False, "support")
    (event,) = project.here("--json", "watch", project.input, "--start", str(found["seq"]), "--count", "1").objects()
    assert (event["data"], event["key"], event["session"]) == ({"text": "hello"}, "k1", "anna")


def test_the_same_idempotency_key_is_one_event(http: httpx.Client, project: Project) -> None:
    headers = {**as_("site"), "Idempotency-Key": "order-7"}
    first, again = [http.post(f"/v1/publish/{project.input}", json={"text": "once"}, headers=headers).json() for _ in range(2)]
    assert (first["seq"], first["duplicate"], again["duplicate"]) == (again["seq"], False, True)
    other = http.post(f"/v1/publish/{project.input}", json={"text": "once"}, headers={**headers, **as_("operator")}).json()
    assert other["duplicate"] is False


@pytest.mark.parametrize("what", ["publish", "call"])
def test_an_empty_idempotency_key_is_refused_and_makes_no_two_requests_one(
    http: httpx.Client, project: Project, what: str
) -> None:
    path = f"/v1/publish/{project.input}" if what == "publish" else "/v1/call/draft"
    said = http.post(path, json={"text": "one of many"}, headers={**as_("site"), "Idempotency-Key": ""})
    assert (said.status_code, said.json()["code"]) == (400, "DX105"), said.text


@pytest.mark.parametrize("structured", [True, False])
def test_a_cloud_event_is_taken_in_both_modes_and_named_by_its_source_and_id(
    http: httpx.Client, project: Project, structured: bool
) -> None:
    about = {"specversion": "1.0", "id": f"e{structured}", "source": "/shop", "type": "said", "time": "2026-01-31T09:00:00Z"}
    if structured:
        headers, body = {"Content-Type": "application/cloudevents+json"}, json.dumps({**about, "data": {"text": "cloud"}})
    else:
        headers = {"Content-Type": "application/json", **{f"ce-{name}": value for name, value in about.items()}}
        body = json.dumps({"text": "cloud"})
    first, again = [
        http.post(f"/v1/publish/{project.input}", content=body, headers={**headers, **as_("site")}).json() for _ in range(2)
    ]
    assert (first["duplicate"], again["duplicate"]) == (False, True)
    tree = project.here("--json", "runs", "show", first["run"]).objects()[1]
    assert tree["data"] == {"text": "cloud"}


@pytest.mark.parametrize(
    ("subject", "who", "body", "kind", "status"),
    [
        ("{u}.in", "nobody", b"{}", "application/json", 401),
        ("{u}.hooks.x", "site", b"{}", "application/json", 404),
        ("{u}.elsewhere", "operator", b"{}", "application/json", 404),
        ("{u}.hooks.*", "operator", b"{}", "application/json", 404),
        ("{u}.hooks.nobody", "operator", b"{}", "application/json", 503),
        ("{u}.in", "site", b"{not json", "application/json", 422),
        ("{u}.in", "site", b'{"specversion": "1.0"}', "application/cloudevents+json", 422),
        ("{u}.in", "site", b"text", "text/plain", 415),
        ("{u}.in", "site", b'"%s"' % (b"x" * 70_000), "application/json", 413),
        ("{u}.in?after=soon", "site", b"{}", "application/json", 400),
        ("{u}.in?time=yesterday", "site", b"{}", "application/json", 400),
    ],
)
def test_what_cannot_be_an_event_is_refused_and_nothing_is_stored(
    http: httpx.Client, project: Project, subject: str, who: str, body: bytes, kind: str, status: int
) -> None:
    before = len(project.here("--json", "runs", "ls", "--limit", "1000").objects())
    path = f"/v1/publish/{subject.format(u=project.u)}"
    said = http.post(path, content=body, headers={**as_(who), "Content-Type": kind})
    assert (said.status_code, said.headers["content-type"]) == (status, "application/problem+json"), said.text
    assert len(project.here("--json", "runs", "ls", "--limit", "1000").objects()) == before


def test_other_codecs_are_published_as_they_are(http: httpx.Client, project: Project) -> None:
    headers = {**as_("site"), "Content-Type": "application/msgpack"}
    found = http.post(f"/v1/publish/{project.input}", content=msgpack.packb({"text": "packed"}), headers=headers).json()
    tree = project.here("--json", "runs", "show", found["run"]).objects()[1]
    assert tree["data"] == {"text": "packed"}
    broken = http.post(f"/v1/publish/{project.input}", content=b"\xc1", headers=headers)
    assert (broken.status_code, broken.json()["code"]) == (422, "DX501")


# -- webhooks
def test_a_webhook_is_stored_once_if_its_signature_is_right(http: httpx.Client, project: Project) -> None:
    body = b'{"action": "opened", "text": "it burns"}'
    right = hmac.new(b"of the hook", body, hashlib.sha256).hexdigest()
    named = {"X-GitHub-Delivery": "d-1", "X-GitHub-Event": "issues"}
    said = http.post("/v1/hooks/issues", content=body, headers={"X-Hub-Signature-256": f"sha256={right}", **named})
    assert said.status_code == 202, said.text
    again = http.post("/v1/hooks/issues", content=body, headers={"X-Hub-Signature-256": f"sha256={right}", **named})
    assert (again.json()["duplicate"], again.json()["seq"]) == (True, said.json()["seq"])
    for signature in (f"sha256={right[::-1]}".encode(), b"", b"sha256=\xc3\xa9"):
        wrong = http.post("/v1/hooks/issues", content=body, headers={b"X-Hub-Signature-256": signature})
        assert wrong.status_code == 401
    assert http.post("/v1/hooks/none", content=body).status_code == 404


GITHUB = ("It's a Secret to Everybody", b"Hello, World!", "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17")
SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    b"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com"
    b"%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d"
    b"10d2c447fce8b6703c"
)


def hook(scheme: str) -> HookSettings:
    return HookSettings.model_validate({"scheme": scheme, "secret_env": "S", "subject": "a"})


def test_signatures_are_those_of_the_services_own_documentation() -> None:
    secret, body, signature = GITHUB
    assert is_signed(hook("github"), Headers({"x-hub-signature-256": f"sha256={signature}"}), body, [secret.encode()])
    at, key = 1531420618, b"8f742231b10e8888abcd99yyyzzz85a5"
    said = {
        "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        "x-slack-request-timestamp": str(at),
    }
    assert is_signed(hook("slack"), Headers(said), SLACK_BODY, [b"another", key], at + 10)
    assert not is_signed(hook("slack"), Headers(said), SLACK_BODY + b"&", [key], at + 10)


def test_a_signature_of_long_ago_is_a_copy_and_refused() -> None:
    body, now = b'{"id": "evt_1"}', int(time.time())
    signed = hmac.new(b"whsec", f"{now}.".encode() + body, hashlib.sha256).hexdigest()
    header = Headers({"stripe-signature": f"t={now},v1={'0' * 64},v1={signed},v0=old"})
    assert is_signed(hook("stripe"), header, body, [b"whsec"], now + SIGNED_WITHIN)
    assert not is_signed(hook("stripe"), header, body, [b"whsec"], now + SIGNED_WITHIN + 1)
    assert not is_signed(hook("stripe"), Headers({"stripe-signature": f"t=x,v1={signed}"}), body, [b"whsec"], now)
    assert not is_signed(hook("stripe"), Headers({}), body, [b"whsec"], now)


@pytest.mark.usefixtures("no_settings")
def test_no_wildcard_offers_to_publish_to_the_logs_and_requests_of_an_application() -> None:
    http = TestClient(app(Settings(), subjects=[">"]))
    for subject in ("dspex.bank.log.t.s.0", "dspex.bank.submit.lightweight.call.site.1", "dspex.other.edge.t.s.0"):
        assert http.post(f"/v1/publish/{subject}", json={}).status_code == 404
    with pytest.raises(ConfigError, match=r"'a b' is no subject"):
        app(Settings(), subjects=["a b"])
