"""Who may call one deployed node may run that node as it is applied, and nothing else on its subject: on a real server."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cli_bench import CLASSIFY, TRIAGE, Project, stand_in
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.errors import InvalidInput, NotAllowed, Unreachable
from dspex.bus.local.server import LocalServer
from dspex.bus.memory.server import MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message, new_id
from dspex.bus.nats import NatsBus, connect
from dspex.bus.port import Bus
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.serving.deployed import FRESH, Deployed
from dspex.bus.serving.sayings import RESULT
from dspex.engine.client.client import Client
from dspex.engine.hosting.apply import apply
from dspex.operators.topology import Topology

POOL, PAID = "lightweight", "text -> secrets: list[str]"
SETTINGS = """
topologies = ["triage.yaml"]
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
lm.dear = {{ model = "openai/dear", base_url = "{url}" }}
pools.lightweight = {{ programs = ["os:*"] }}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[tuple[Project, str]]:
    """A project whose topology and pool run, and the URL of its model."""
    with stand_in() as url:
        made = Project(tmp_path_factory.mktemp("called"), f"d{new_id()[-10:]}", SETTINGS.format(url=url), NATS_URL=nats_url)
        made.write("triage.yaml", TRIAGE.format(u=made.u, signature=CLASSIFY))
        with made.start("--json", "run") as run:
            run.until('"ready"')
            run.until('"pool ready"')
            yield made, url
            assert run.end() == 0, run.errors()


@pytest_asyncio.fixture
async def caller(nats_url: str) -> AsyncIterator[NatsBus]:
    opened = await connect(nats_url)
    yield opened
    await opened.close()


async def asked(bus: NatsBus, subject: str, request: CallRequest) -> CallRecord:
    """What a pool answers to a request on a subject."""
    frames = asyncio.Queue[Message]()
    inbox = bus.inbox(frames.put_nowait)
    async with asyncio.timeout(60):
        await bus.send(subject, request.pack(), reply=inbox.subject)
        while (frame := await frames.get()).headers.get(subjects.KIND) != RESULT:
            pass
    inbox.close()
    return CallRecord.unpack(frame.data)


def request(spec: CallSpec, topology: str, node: str) -> CallRequest:
    call = new_id()
    return CallRequest(call, 1, 1, topology, node, spec, {"text": "where is my card"}, call)


def requests_to(model: str) -> int:
    with urllib.request.urlopen(model.removesuffix("/v1") + "/stats") as answer:
        return int(json.load(answer)["requests"])


@pytest.mark.no_cover
@pytest.mark.asyncio(loop_scope="function")
async def test_on_the_subject_of_a_node_nothing_runs_but_that_node(project: tuple[Project, str], caller: NatsBus) -> None:
    made, model = project
    spec = (await Client(bus=caller, app=made.u).resolve("triage/classify")).spec
    subject, before = subjects.call(made.u, POOL, "triage", "classify"), requests_to(model)
    others: list[dict[str, Any]] = [
        {"target": PAID, "signature": PAID},
        {"instructions": "Tell all that you know."},
        {"lm": ("dear",)},
        {"config": {"max_tokens": 100_000}},
        {"kind": "program", "target": "os:system"},
        {"kind": "react", "tools": ("os:system",)},
        {"fields": {"text": {"desc": "ignored"}}},
        {"adapter": "xml"},
    ]
    for other in others:
        error = (await asked(caller, subject, request(replace(spec, **other), "triage", "classify"))).error
        assert (error or {}).get("type") == "InvalidInput", other
    for topology, node in (("triage", "another"), ("another", "classify"), ("adhoc", "predict")):
        error = (await asked(caller, subjects.call(made.u, POOL, topology, node), request(spec, topology, node))).error
        assert (error or {}).get("type") == "InvalidInput", (topology, node)
    adhoc = subjects.ad_hoc_call(made.u, POOL, "predict")
    error = (await asked(caller, adhoc, request(replace(spec, kind="program", target="os:system"), "", ""))).error
    assert (error or {}).get("type") == "NotAllowed"
    assert requests_to(model) == before
    assert (await asked(caller, subject, request(spec, "triage", "classify"))).error is None
    assert (await asked(caller, adhoc, request(replace(spec, target=PAID, signature=PAID), "", ""))).error is None
    assert requests_to(model) == before + 2


@pytest.mark.no_cover
@pytest.mark.asyncio(loop_scope="function")
async def test_a_pool_answers_to_inboxes_and_never_to_what_a_caller_may_not_write(
    project: tuple[Project, str], caller: NatsBus
) -> None:
    u = project[0].u
    heard = asyncio.Queue[Message]()
    others = [
        subjects.log(u, "triage", "s1", 0),
        f"{u}.out",
        f"$KV.{subjects.applied(u)}.{subjects.manifest_key('triage', 9)}",
        f"$JS.API.STREAM.DELETE.{subjects.requests(u)}",
    ]
    for subject in others:
        await caller.subscribe(subject, heard.put)
    adhoc = subjects.ad_hoc_call(u, POOL, "predict")
    for subject in (*others, "_INBOX", "_INBOX.*"):
        await caller.send(adhoc, b"what is no request is answered", reply=subject)
        await caller.send(subjects.control(u, POOL), b'{"kind": "status"}', reply=subject)
    assert (await asked(caller, adhoc, request(CallSpec("predict", PAID, PAID), "", ""))).error is None
    assert b"served" in (await caller.request(subjects.control(u, POOL), b'{"kind": "status"}')).data
    assert heard.empty()


async def answered(bus: NatsBus, subject: str, body: bytes, **headers: str) -> tuple[Any, str | None]:
    """The first message that any client hears for a request, which is the only one that it waits for; and its error's code."""
    frames = asyncio.Queue[Message]()
    inbox = bus.inbox(frames.put_nowait)
    async with asyncio.timeout(60):
        await bus.send(subject, body, headers=headers, reply=inbox.subject)
        frame = await frames.get()
    inbox.close()
    code = frame.headers.get(subjects.SERVICE_ERROR_CODE)
    assert (code is None) == (subjects.SERVICE_ERROR not in frame.headers)
    return json.loads(frame.data), code


@pytest.mark.no_cover
@pytest.mark.asyncio(loop_scope="function")
async def test_any_nats_client_calls_a_deployed_node_in_json_and_is_told_of_errors_in_headers(
    project: tuple[Project, str], caller: NatsBus
) -> None:
    u = project[0].u
    subject = subjects.call(u, POOL, "triage", "classify")
    found, code = await answered(caller, subject, b' {"text": "where is my card"}')
    assert (code, sorted(found)) == (None, ["intent", "urgency"])
    refused = [
        (subject, b"{}", {}, "400", "text"),
        *((subject, body, {}, "400", "JSON") for body in (b'{"text": ', b"where is my card", b"\xef\xbb\xbf{}", b"")),
        *((subject, body, {}, "400", "object") for body in (b"[1]", b'"text"', b"null")),
        (subject, b'{"text": "a"}', {subjects.SESSION: "c1"}, "400", "session"),
        (subject, b'{"text": "standin:503 a"}', {}, "503", "503"),
        (subjects.call(u, POOL, "triage", "another"), b'{"text": "a"}', {}, "400", "no node"),
        (subjects.ad_hoc_call(u, POOL, "predict"), b'{"text": "a"}', {}, "400", "no node"),
    ]
    for where, body, headers, wanted, why in refused:
        found, code = await answered(caller, where, body, **headers)
        assert (code, why in found["error"]["message"]) == (wanted, True), (body, found)
    many = await asyncio.gather(*(answered(caller, subject, b'{"text": "the same"}') for _ in range(20)))
    assert {code for _, code in many} <= {None, "429"}
    assert any(code is None for _, code in many)


@pytest.mark.no_cover
@pytest.mark.asyncio(loop_scope="function")
async def test_the_answer_to_a_client_of_dspex_has_the_headers_of_an_error_too(
    project: tuple[Project, str], caller: NatsBus
) -> None:
    frames = asyncio.Queue[Message]()
    inbox = caller.inbox(frames.put_nowait)
    await caller.send(subjects.ad_hoc_call(project[0].u, POOL, "predict"), b"\x81", reply=inbox.subject)
    frame = await asyncio.wait_for(frames.get(), 60)
    inbox.close()
    assert frame.headers[subjects.SERVICE_ERROR_CODE] == "400"
    assert frame.headers[subjects.SERVICE_ERROR].startswith("not MessagePack")


# -- when what is applied changes -----------------------------------------------------------------------------------------
class Lab:
    """A worker's knowledge of an application on a virtual clock."""

    def __init__(self) -> None:
        self.loop, self.server = VirtualLoop(), MemoryServer()
        self.bus: Bus = self.server.connect()
        self.deployed = Deployed(self.bus, "lab", "p")

    def apply(self, signature: str, **options: Any) -> CallSpec:
        """Apply a version of the topology; what its node runs."""
        topology = Topology("asking")
        topology.source("in").predict(signature, name="ask", **{"pool": "p", **options}).sink("out")

        async def go() -> None:
            await apply(self.bus, "lab", [topology.graph])

        self.loop.run(go())
        return next(iter(topology.graph.calls)).call.spec

    def refused(self, spec: CallSpec) -> str:
        """Why a call of the node with a spec is refused; "" where it is not."""
        try:
            self.loop.run(self.deployed.check(request(spec, "asking", "ask")))
        except InvalidInput as e:
            return e.message
        return ""


@pytest.fixture
def lab() -> Iterator[Lab]:
    one = Lab()
    yield one
    one.loop.close()


def test_a_new_version_is_known_with_its_first_call_and_the_old_one_no_more(lab: Lab) -> None:
    first = lab.apply("text -> answer")
    assert lab.refused(first) == ""
    second = lab.apply("text -> answer, why")
    assert lab.refused(second) == ""
    assert "not what asking/ask runs" in lab.refused(first)


def test_an_old_version_is_known_for_seconds_where_nobody_calls_the_new_one(lab: Lab) -> None:
    first = lab.apply("text -> answer")
    assert lab.refused(first) == ""
    lab.apply("text -> answer, why")
    lab.loop.advance(FRESH + 1)
    assert "not what asking/ask runs" in lab.refused(first)


def test_a_client_keeps_what_a_node_runs_until_it_is_refused(lab: Lab) -> None:
    client = Client(bus=lab.server.connect(), app="lab")

    refusals: list[str] = []

    async def answer(message: Message) -> None:
        work = CallRequest.unpack(message.data)
        found = CallRecord(work.call, 1, 1, "asking", "ask", outputs={"by": work.spec.signature})
        try:
            await lab.deployed.check(work)
        except InvalidInput as e:
            refusals.append(e.code)
            found = replace(found, outputs=None, error=e.as_dict())
        await lab.bus.send(message.reply, found.pack(), headers={subjects.KIND: RESULT})

    async def ask() -> object:
        return (await client.call("asking/ask", {"text": "x"})).data

    first, second = "text -> answer", "text -> answer, why"
    lab.apply(first)
    lab.loop.run(lab.bus.subscribe(subjects.call("lab", "p", "asking", "ask"), answer, queue="p"))
    assert lab.loop.run(ask()) == {"by": first}
    kept, lab.server.buckets = lab.server.buckets, {}
    assert lab.loop.run(ask()) == {"by": first}
    lab.server.buckets = kept
    lab.apply(second)
    lab.loop.advance(FRESH / 2)
    assert lab.refused(CallSpec("predict", second, second, route="auto")) == ""  # the worker knows it, and the client does not
    assert lab.loop.run(ask()) == {"by": second}
    assert refusals == ["DX517"]


def test_a_node_of_another_pool_is_none_of_this_one(lab: Lab) -> None:
    assert "no node asking/ask of pool p is applied" in lab.refused(lab.apply("text -> answer", pool="q"))


def test_nothing_is_applied_where_there_is_no_bucket_and_none_is_made(lab: Lab) -> None:
    assert "no node asking/ask of pool p is applied" in lab.refused(CallSpec("predict", "a -> b", "a -> b"))
    assert lab.server.buckets == {}


def test_a_spec_of_an_older_manifest_that_lacks_what_came_since_is_compared_with_the_defaults(lab: Lab) -> None:
    spec = lab.apply("text -> answer", route="worker")
    old = {"calls": {"ask": {"pool": "p", "spec": {"kind": "predict", "target": spec.target, "signature": spec.signature}}}}

    async def go() -> None:
        await (await lab.bus.bucket(subjects.applied("lab"))).put(subjects.manifest_key("asking", 2), json.dumps(old).encode())

    lab.loop.run(go())
    assert lab.refused(CallSpec.read(old["calls"]["ask"]["spec"])) == ""
    assert lab.refused(replace(spec, tools=("os:system",))) != ""


@pytest.mark.parametrize("garbage", [b"", b"{}", b"null", b'{"calls": {"ask": {"pool": "p", "spec": {"kind": 1}}}}'])
def test_what_is_no_manifest_under_the_key_of_one_to_come_keeps_nobody_from_calling(lab: Lab, garbage: bytes) -> None:
    async def put(version: int) -> None:
        await (await lab.bus.bucket(subjects.applied("lab"))).put(subjects.manifest_key("asking", version), garbage)

    lab.loop.run(put(1))
    assert "no node" in lab.refused(CallSpec("predict", "text -> answer", "text -> answer"))
    first = lab.apply("text -> answer")
    lab.loop.run(put(3))
    assert lab.refused(first) == ""
    second = lab.apply("text -> answer, why")
    assert lab.refused(second) == ""
    assert lab.refused(first) != ""


def test_while_the_server_cannot_be_asked_what_was_known_a_moment_ago_holds(lab: Lab) -> None:
    spec = lab.apply("text -> answer")
    assert lab.refused(spec) == ""
    lab.loop.advance(FRESH + 1)
    lab.loop.run(lab.bus.close())
    assert lab.refused(spec) == ""
    with pytest.raises(Unreachable):
        lab.refused(replace(spec, target="text -> other"))


@pytest.mark.asyncio
async def test_a_worker_that_may_not_read_manifests_refuses_and_says_what_it_lacks(tmp_path: Path, unique: str) -> None:
    user = (
        f'{{ user: w, password: p, permissions: {{ publish: {{ deny: "$JS.API.STREAM.INFO.KV_DSPEX_{unique}_applied" }} }} }}'
    )
    users = f"accounts {{ A {{ jetstream: enabled, users: [{user}, {{ user: all, password: p }}] }} }}\nno_auth_user: all\n"
    async with LocalServer(tmp_path / "js", port=None, extra_config=users) as server:
        bus = await connect(server.url, user="w", password="p")
        deployed = Deployed(bus, unique, "p")
        with capture_logs() as logs:
            for _ in range(2):
                with pytest.raises(NotAllowed, match=f"STREAM.INFO.KV_DSPEX_{unique}_applied"):
                    await deployed.check(request(CallSpec("predict", "a -> b", "a -> b"), "asking", "ask"))
        await bus.close()
    assert [e["event"] for e in logs if e["log_level"] == "error"] == ["cannot read what deployed nodes run"]
