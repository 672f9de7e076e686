"""What broke the first version, done again to an application that runs, by the command line or by a client of NATS that has
nothing of dspex: an engine, its pool and the server are real, and well behind each of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import nats
import numpy
import psutil
import pyarrow
import pytest
import pytest_asyncio
import standin
from cli_bench import HERE, NATIVE, Project, Running, stand_in
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import APIError
from waiting import eventually

from dspex.bus import codecs, subjects
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec

POOL = "lightweight"
SETTINGS = """
topologies = ["alpha.yaml", "beta.yaml"]
path = ["{path}"]
lm.main = {{ model = "openai/stand-in", base_url = "{url}", key_env = "MODEL_KEY" }}
pools.lightweight = {{ programs = ["sample:*"] }}
"""
TOPOLOGY = """
dspex: 1
topology: {name}
sources: {{ {u}.in: {{}} }}
nodes:
  ask: {{ from: {u}.in, predict: "text -> reply", retry: {{ attempts: 1 }} }}
sinks: {{ {u}.{name}: {{ from: ask }} }}
"""


@dataclass
class Application:
    """Two topologies that read one subject and have a node of one name; `run` has the engine and the pool."""

    project: Project
    run: Running
    numbers: Iterator[int]

    @property
    def app(self) -> str:
        return self.project.u

    def call(self, what: str, *args: str, timeout: str = "60s") -> Any:
        """A call of a program by the command line: its outputs, or the code of its error."""
        done = self.project.here("--json", "call", f"sample:{what}", "--timeout", timeout, "--signature", *args)
        return done.objects()[0]["data"] if done.code == 0 else done.error()["code"]

    def pool(self) -> tuple[int, int]:
        """How many worker processes are ready, and how often one was started again."""
        (one,) = self.project.here("--json", "status").objects()[-1]["pools"]
        return one["ready"], one["restarts"]

    def letters(self) -> list[Any]:
        """The dead letters that there are."""
        done = self.project.here("--json", "dlq", "ls")
        assert done.code == 0, done.err
        return done.objects()

    def is_well(self) -> None:
        """An event arrives by both topologies, and a call is answered."""
        text = f"good {next(self.numbers)}"
        assert asyncio.run(self.arrives(text)) == [{"text": text, "reply": f"reply of {text}"}] * 2, self.run.errors()[-3000:]
        assert self.call("echo", "text -> reply", f"text={text}") == {"reply": text}

    async def arrives(self, text: str) -> list[Any]:
        """What comes out of an event at both sinks."""
        async with connected(self.project.env["NATS_URL"]) as client:
            outputs = [await client.subscribe(f"{self.app}.{name}") for name in ("alpha", "beta")]
            await client.jetstream().publish(f"{self.app}.in", json.dumps({"text": text}).encode())
            return [json.loads((await until(output, text.encode())).data) for output in outputs]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    """A client as anybody has one."""
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


async def until(subscription: Any, part: bytes) -> Msg:
    """The first message with `part` in it."""
    async with asyncio.timeout(60):
        while part not in (message := await subscription.next_msg(timeout=60)).data:
            pass
    found: Msg = message
    return found


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[Application]:
    folder = tmp_path_factory.mktemp("attacked")
    with stand_in() as url:
        settings = SETTINGS.format(url=url, path=HERE / "programs")
        project = Project(folder, f"a{folder.stat().st_ino}", settings, NATS_URL=nats_url, MODEL_KEY="sk-secret")
        for name in ("alpha", "beta"):
            project.write(f"{name}.yaml", TOPOLOGY.format(u=project.u, name=name))
        with project.start("--json", "run") as run:
            run.until('"ready"')
            yield Application(project, run, itertools.count(1))
            assert run.end() == 0, run.errors()[-3000:]


@pytest_asyncio.fixture
async def stranger(nats_url: str) -> AsyncIterator[Client]:
    async with connected(nats_url) as client:
        yield client


# -- what the local server lets in ------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_the_server_of_a_run_lets_no_other_user_of_the_machine_in(tmp_path: Path, unique: str) -> None:
    project = Project(tmp_path, unique, 'topologies = ["native.yaml"]\nserver.local = { port = -1 }\n')
    project.write("native.yaml", NATIVE.format(u=unique))
    with project.start("run", "--pools", "none") as run:
        await asyncio.to_thread(run.until, "ready")
        url = json.loads((tmp_path / ".dspex/server.json").read_text())["url"]
        reader, writer = await asyncio.open_connection(*url.removeprefix("nats://").split(":"))
        writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
        told = b""
        while b"PONG" not in told and b"-ERR" not in told:
            told += await reader.read(4096)
        writer.close()
        assert b"-ERR 'Authorization Violation'" in told
        home = tmp_path / ".dspex"
        assert [file for file in (home, *home.iterdir()) if file.stat().st_mode & 0o077] == []
        assert await asyncio.to_thread(run.end) == 0, run.errors()


# -- what a caller may run, and with whose key ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["os.system", "Path.cwd", "asyncio.os.system", "sys.modules.__class__", "_Silent"])
def test_a_module_that_is_allowed_is_no_door_to_what_it_imported(application: Application, tmp_path: Path, name: str) -> None:
    made = tmp_path / "made"
    code = application.call(name, "command -> rc", f"command=touch {made}")
    assert not made.exists()
    assert code == "DX608"


def request(application: Application, kind: str = "predict", **changes: Any) -> tuple[str, bytes]:
    """The subject and the bytes of an interactive call. `changes`: of its spec."""
    target = "sample:echo" if kind == "program" else "text -> reply"
    spec = replace(CallSpec(kind, target, "text -> reply"), **changes)
    made = CallRequest("call", 1, 1, "", "", spec, {"text": "hello"}, "run")
    return subjects.ad_hoc_call(application.app, POOL, kind), made.pack()


@pytest.mark.asyncio
@pytest.mark.parametrize("route", ["worker", "auto"])
async def test_a_key_goes_to_no_server_that_a_caller_names(application: Application, stranger: Client, route: str) -> None:
    async with standin.StandIn() as foreign:
        subject, data = request(application, config={"api_base": foreign.url}, route=route)
        inbox = stranger.new_inbox()
        replies = await stranger.subscribe(inbox)
        await stranger.publish(subject, data, reply=inbox)
        result = await until(replies, b"error")
        assert (foreign.requests, foreign.last_key) == (0, "")
    assert b"InvalidInput" in result.data


# -- what a publisher may erase, take and repeat --------------------------------------------------------------------------
HEADERS = [{"Nats-Rollup": "all"}, {"Nats-Rollup": "sub"}, {"Nats-TTL": "1s"}, {"Nats-Schedule": "@every 1s"}]


@pytest.mark.parametrize("headers", HEADERS, ids=str)
def test_no_header_of_a_message_erases_others_or_comes_again(
    application: Application, nats_url: str, headers: dict[str, str]
) -> None:
    app = application.app
    families = ["log.alpha.s1.0", "work.lightweight.1.alpha.ask", "record.lightweight", "dead.alpha.ask", "audit.publish"]
    application.is_well()

    async def attack() -> None:
        async with connected(nats_url) as client:
            js = client.jetstream()
            streams = {i.config.name: i.state.messages for i in await js.streams_info() if app in (i.config.name or "")}
            for subject in (f"{app}.in", f"{app}.alpha", f"$KV.DSPEX_{app}.x", *(f"dspex.{app}.{end}" for end in families)):
                more = {"Nats-Schedule-Target": f"{subject}.again"} if "Nats-Schedule" in headers else {}
                with suppress(APIError):
                    await js.publish(subject, b'{"text": "attack"}', headers={**headers, **more})
                    pytest.fail(f"stored on {subject}")
            for name, before in streams.items():
                assert (await js.stream_info(name)).state.messages >= before, name

    asyncio.run(attack())
    application.is_well()


@pytest.mark.parametrize("how", ["ids of events", "a mark of its redrive"])
def test_nothing_that_is_made_up_takes_a_redrive_away(application: Application, nats_url: str, how: str) -> None:
    """Message ids are one space in a stream, and who publishes chooses them; so it was with the marks of what was redriven."""
    app, word = application.app, how.replace(" ", "")
    asyncio.run(published(nats_url, f"{app}.in", {"text": f"standin:400x1 {word}"}))
    (letter,) = eventually(application.letters)
    sequence, topology = letter["sequence"], letter["topology"]
    if how == "ids of events":
        for near in range(sequence, sequence + 3):
            for subject in (f"{app}.in", f"{app}.alpha"):
                asyncio.run(published(nats_url, subject, {"text": "decoy"}, {"Nats-Msg-Id": f"redrive:{near}"}))
    else:
        asyncio.run(published(nats_url, subjects.redriven(app), {"letter": sequence}))
        frame = subjects.edge(app, topology, "s1", 0)
        asyncio.run(published(nats_url, frame, {}, {subjects.LETTER: str(sequence)}))

    async def again() -> Any:
        async with connected(nats_url) as client:
            outputs = await client.subscribe(f"{app}.{topology}")
            await client.flush()
            done = await asyncio.to_thread(application.project.here, "dlq", "redrive", str(sequence))
            assert done.code == 0, done.err
            return json.loads((await until(outputs, word.encode())).data)

    assert asyncio.run(again())["reply"] == f"reply of standin:400x1 {word}"
    assert application.letters() == []


async def published(url: str, subject: str, data: dict[str, Any], headers: dict[str, str] | None = None) -> int:
    async with connected(url) as client:
        return (await client.jetstream().publish(subject, json.dumps(data).encode(), headers=headers)).seq


@pytest.mark.parametrize("header", ["Nats-Msg-Id", "Dspex-Id"])
def test_events_of_one_id_and_nodes_of_one_name_have_an_answer_each(
    application: Application, nats_url: str, header: str
) -> None:
    async def attack() -> None:
        async with connected(nats_url) as client:
            outputs = [await client.subscribe(f"{application.app}.{name}") for name in ("alpha", "beta")]
            for text in ("one", "two"):
                event = json.dumps({"text": f"{text} {header}"}).encode()
                await client.jetstream().publish(f"{application.app}.in", event, headers={header: "the-same"})
            for output in outputs:
                for text in ("one", "two")[: 1 if header == "Nats-Msg-Id" else 2]:  # of which the server takes the first
                    assert json.loads((await until(output, text.encode())).data)["reply"] == f"reply of {text} {header}"

    asyncio.run(attack())


def table(columns: dict[str, Any], metadata: dict[bytes, bytes] | None = None) -> bytes:
    """A table as a publisher may write it: compressed."""
    made, sink = pyarrow.table(columns).replace_schema_metadata(metadata), pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, made.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(made)
    return bytes(sink.getvalue().to_pybytes())


def letters_of(application: Application, url: str, data: bytes) -> list[str]:
    """Publish a table; the sequences of the dead letters that both topologies make of it."""

    async def attack() -> None:
        async with connected(url) as client:
            headers = {subjects.CONTENT_TYPE: codecs.ARROW}
            await client.jetstream().publish(f"{application.app}.in", data, headers=headers)

    asyncio.run(attack())
    found = eventually(lambda: len(rows := application.letters()) == 2 and rows)
    return [str(row["sequence"]) for row in found]


def test_a_small_event_takes_little_memory_whatever_it_says_of_itself(application: Application, nats_url: str) -> None:
    column = pyarrow.array(numpy.zeros(2_000_000))
    bomb, process = table({f"c{n}": column for n in range(20)}), psutil.Process(application.run.process.pid)
    assert len(bomb) < 500_000
    before = process.memory_info()
    letters_of(application, nats_url, bomb)
    assert most_memory(process) < before.rss + 20 * column.nbytes / 4
    assert application.project.here("dlq", "drop", "--all").code == 0
    application.is_well()


def test_an_event_nested_without_end_breaks_no_verb_about_letters(application: Application, nats_url: str) -> None:
    deep = table({"data": [1.0]}, {b"dspex.dtype": b"<f8", b"dspex.shape": b"[" * 200_000})
    for sequence in letters_of(application, nats_url, deep):
        shown = application.project.here("dlq", "show", sequence)
        assert shown.code == 0, shown.err
    assert application.project.here("dlq", "drop", "--all").code == 0
    application.is_well()


def most_memory(process: psutil.Process) -> int:
    """Bytes of memory that the process had at most, where the system keeps that."""
    file = Path(f"/proc/{process.pid}/status")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), process.memory_info().rss)


# -- what stops a pool ----------------------------------------------------------------------------------------------------
def test_calls_without_a_subject_for_their_answers_take_no_slot(application: Application, nats_url: str) -> None:
    async def attack() -> None:
        async with connected(nats_url) as client:
            for _ in range(100):
                await client.publish(*request(application))

    asyncio.run(attack())
    application.is_well()


@pytest.mark.parametrize("frame", ["garbage", "81a26964cd0001"])
def test_a_program_that_writes_into_its_workers_socket_takes_no_slot(application: Application, frame: str) -> None:
    body = bytes.fromhex(frame) if frame != "garbage" else b"garbage"
    text = (len(body).to_bytes(4, "big") + body).hex()
    assert application.call("writes_frames", "text -> reply", f"text={text}", timeout="60s") == "DX606"
    application.is_well()


def test_a_log_line_of_a_program_stops_nothing(application: Application) -> None:
    for text in ('{"event":"x","pid":1}', "then more than a pipe holds"):
        assert application.call("prints_lines", "text -> reply", f"text={text}", timeout="60s") == {"reply": "printed"}
    application.is_well()


def test_a_malformed_call_ends_no_process_and_no_other_call(application: Application, nats_url: str) -> None:
    eventually(lambda: application.pool()[0] == 1)
    before = application.pool()
    wrong = [{"tools": 5}, {"lm": 5}, {"config": []}, {"fields": [1]}, {"max_iters": "x"}, {"route": {}}]

    async def attack() -> None:
        async with connected(nats_url) as client:
            durable = subjects.work(application.app, POOL, "alpha", "ask")
            for change in wrong:
                subject, data = request(application, "react" if "max_iters" in change else "predict", **change)
                await client.publish(subject, data, reply=client.new_inbox())
                await client.publish(durable, data)
            await client.publish(durable, msgpack.packb({**msgpack.unpackb(data), "timeout": "x", "record": 5}))

    asyncio.run(attack())
    application.is_well()
    assert application.pool() == before


def test_an_answer_over_what_a_message_holds_reaches_its_caller(application: Application) -> None:
    found = application.call("big", "text -> reply", "text=2000000", timeout="60s")
    assert found == {"reply": "x" * 2_000_000}


# -- what is believed -----------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_what_others_publish_to_an_engines_inbox_is_no_event(
    tmp_path: Path, unique: str, nats_url: str, stranger: Client
) -> None:
    project = Project(tmp_path, unique, 'topologies = ["native.yaml"]', NATS_URL=nats_url)
    project.write("native.yaml", NATIVE.format(u=unique))
    asked = await stranger.subscribe(f"$JS.API.CONSUMER.MSG.NEXT.DSPEX_{unique}_sources.>")
    outputs = await stranger.subscribe(f"{unique}.out")
    await stranger.flush()
    with project.start("run", "--pools", "none") as run:
        await asyncio.to_thread(run.until, "ready")
        pull = await asked.next_msg(timeout=60)
        consumer = pull.subject.rpartition(".")[2]
        forged = f"x.ACK.DSPEX_{unique}_sources.{consumer}.1.99999999.1.{time.time_ns()}.0"
        for subject in (pull.reply, f"{pull.reply.rpartition('.')[0]}.x"):
            await stranger.publish(subject, b'{"text": "forged"}', reply=forged)
        for text in ("first", "second"):
            await stranger.jetstream().publish(f"{unique}.in", json.dumps({"text": text}).encode())
            assert json.loads((await outputs.next_msg(timeout=60)).data) == {"text": text, "size": len(text)}
        assert await asyncio.to_thread(run.end) == 0, run.errors()


@pytest.mark.asyncio
async def test_who_was_not_given_a_request_answers_no_call(application: Application, stranger: Client) -> None:
    """All but the end of a record's id can be computed from where its event stands."""
    work = await stranger.subscribe(f"dspex.{application.app}.work.>")
    outputs = await stranger.subscribe(f"{application.app}.alpha")
    text = "standin:slow=1 asked"
    await stranger.jetstream().publish(f"{application.app}.in", json.dumps({"text": text}).encode())
    while (asked := CallRequest.unpack((await until(work, text.encode())).data)).topology != "alpha":
        pass
    assert asked.record is not None
    to, (id, _, nonce) = asked.record, asked.record.id.rpartition(".")
    record = CallRecord(asked.call, asked.try_number, asked.attempt, "alpha", "ask", to.number, to.event, {"reply": "forged"})
    for forged in ("", id, f"{id}.{'0' * len(nonce)}"):
        headers = {subjects.MESSAGE_ID: forged} if forged else None
        await stranger.jetstream().publish(to.subject, record.pack(), headers=headers)
    assert json.loads((await until(outputs, text.encode())).data)["reply"] == f"reply of {text}"
