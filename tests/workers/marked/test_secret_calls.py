"""Secret fields in workers: what a pool stores of calls that have them, and the canary that is searched for in all that lies on
the disk of a server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pool_bench import APP, POOL, Bench, config, running, work
from pydantic import BaseModel, Field
from sealed_app import KEYS, Sealed, letters, of
from structlog.testing import capture_logs
from waiting import until

from dspex.bus import subjects
from dspex.bus.errors import CallError, ConfigError
from dspex.bus.local.server import LocalServer
from dspex.bus.memory.server import MemoryServer
from dspex.bus.records import CallRecord
from dspex.bus.serving.keys.secret_fields import SECRET
from dspex.engine.client.client import Client
from dspex.engine.graph.submitted import submitted
from dspex.engine.hosting.host import Host
from dspex.operators.native.signature import Signature
from dspex.operators.recorded.calls import predict
from dspex.operators.recorded.spec import Spec
from dspex.operators.topology import Topology
from dspex.workers.pool.pool import Pool

CANARY = "canary-4929111122223333"


class Told(BaseModel):
    text: str
    card: str = Field(json_schema_extra={"secret": True})


class Replied(BaseModel):
    reply: str
    code: str = Field(json_schema_extra={"secret": True})


ASK = Signature.of(Told, Replied)


def asking(**options: Any) -> Spec[Any]:
    return predict(ASK, pool=POOL, route="native", **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one(shared_model: Any) -> AsyncIterator[Bench]:
    """A pool without a key, of an application with a bucket for answers."""
    server = MemoryServer()
    await server.connect().bucket(subjects.cache(APP))
    async with running(config(shared_model.url, programs=()), server.connect()) as found:
        yield found


async def records(bench: Bench) -> list[CallRecord]:
    """Those of interactive calls."""
    stream = await bench.bus.stream(subjects.stream(APP))
    assert stream is not None
    subject = subjects.interactive_record(APP, POOL)
    found = await bench.bus.scan(stream.name, [subject], start=1, stop=stream.last)
    return [CallRecord.unpack(m.data) for m in found]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_caller_gets_what_is_secret_and_the_record_has_a_marker(one: Bench) -> None:
    client, before = Client(bus=one.bus, app=APP), len(await records(one))
    with capture_logs() as logged:
        answer = await client.call(asking(cache="1h"), {"text": CANARY, "card": CANARY})
        with pytest.raises(CallError):
            await client.call(asking(), {"text": f"standin:nonsense {CANARY}", "card": CANARY})
    assert answer.data["code"] == f"code of {CANARY}"
    await until(lambda: len(one.pool.cache.kept) == 1)

    async def stored() -> bool:
        return len(await records(one)) == before + 2

    await until(stored)
    first = (await records(one))[before]
    assert first.outputs == {"reply": f"reply of {SECRET}", "code": SECRET}
    assert CANARY not in str(await records(one))
    assert CANARY not in str(logged)
    bucket = await one.bus.bucket(subjects.cache(APP))
    await one.pool.cache.drain(5)
    assert await bucket.keys() == []


@pytest.mark.asyncio(loop_scope="module")
async def test_a_worker_without_a_key_refuses_what_it_would_have_to_store(one: Bench) -> None:
    spec = dataclasses.replace(asking().to_call().spec, cache=0.0)
    (refused,) = await one.ask(work(spec=spec, inputs={"text": "a", "card": CANARY}))
    assert refused.error is not None
    assert refused.error["code"] == "DX127"
    client, large = Client(bus=one.bus, app=APP), "x" * (1 << 20)
    with pytest.raises(ConfigError, match="a request that no message holds") as e:
        await client.call(asking(), {"text": large, "card": CANARY})
    assert e.value.code == "DX127"


@pytest.mark.long
@pytest.mark.asyncio
async def test_a_secret_lies_nowhere_on_the_disk_of_a_server(tmp_path: Path, unique: str, model: Any) -> None:
    """Through a retry, a letter, a journaled program, a hop, state, a cache, a submitted call, a turn, a fork, and a file."""
    async with LocalServer(tmp_path / "js", port=None) as server, AsyncExitStack() as stack:
        app = Sealed(server.url, unique, stack)
        topology = Topology("paying")
        source = topology.source(f"{unique}.in")
        asked = source.predict(ASK, name="ask", pool=POOL, route="native", cache="1h", retry={"attempts": 2, "backoff": "10ms"})
        told = asked.program("journaled:secretly", ASK, name="tell", pool=POOL)
        told.key_by("text", name="by_text").stateful(keep, init=dict, name="keep").sink(f"{unique}.out")
        host = Host(await app.bus(), unique, [topology.graph, submitted(unique, (POOL,))], engine="a")
        await host.start()
        stack.push_async_callback(host.drain)
        pool = Pool(await app.bus(), dataclasses.replace(config(model.url), app=unique))
        await pool.start()
        stack.push_async_callback(pool.drain, 5.0)
        client = await app.client()
        for text in ("a", "a", "standin:500x1", "standin:400"):
            await client.publish(f"{unique}.in", {"text": text, "card": CANARY}, session="s" if text == "a" else None)
        await client.call(asking(cache="1h"), {"text": "b", "card": CANARY})
        await client.session("talk").call(asking(), {"text": "c", "card": CANARY})
        run = await client.submit(asking(), {"text": "d", "card": CANARY})
        assert (await run.result("60s")).data["code"] == "code of d"

        async def over() -> bool:
            return len(await of(client, f"{unique}.out")) == 3 and len(await letters(client)) == 1

        await until(over, 60)
        assert all(f'"saw":"{CANARY}"'.encode() in data for data in await of(client, f"{unique}.out"))
        (letter,) = await letters(client)
        assert letter.event.data["card"] == CANARY
        done = [info.id async for info in client.runs("paying", status="done")]
        fork = await client.fork(done[0], "ask", topology=topology)
        assert (await fork.info()).parent == done[0]
        await client.run(done[0]).export(tmp_path / "run.jsonl")
        await client.import_run(tmp_path / "run.jsonl")
        assert CANARY not in (tmp_path / "run.jsonl").read_text()
        said = await printed(tmp_path, unique, server.url, verbs(unique, done[0], fork.id, run.id, letter.sequence))
        assert (CANARY in said, SECRET in said) == (False, True)
    files = [file for file in (tmp_path / "js").rglob("*") if file.is_file()]
    assert len(files) > 20
    assert not [file.name for file in files if CANARY.encode() in file.read_bytes()]


def verbs(app: str, run: str, fork: str, submitted: str, letter: int) -> list[list[str]]:
    """What prints what events, calls, sessions and operators have, for people and as JSON."""
    all, one = ["--start", "all", "--count"], ["runs", "show", "--requests"]
    found = [
        ["watch", subject, *all, count] for subject, count in ((f"{app}.in", "4"), (f"{app}.out", "3"), ("paying/ask", "4"))
    ]
    found += [["watch", f"dspex.{app}.dead.>", *all, "1"], ["watch", f"dspex.{app}.record.>", *all, "5"]]
    found += [["sessions", "show", "talk"], ["dlq", "ls"], ["dlq", "show", str(letter)], ["state", "ls", "keep"]]
    found += [["state", "get", "keep", "a"], [*one, run], [*one, fork], [*one, submitted], ["diff", run, fork], ["audit", "ls"]]
    found += [
        ["runs", "explain", run, "tell#0"],
        ["publish", f"{app}.in", f"card={CANARY}", "text=standin:400", "--wait", "60s"],
    ]
    return [[*how, *verb] for verb in found for how in ([], ["--json"])]


async def printed(folder: Path, app: str, url: str, verbs: list[list[str]]) -> str:
    """What the command line prints with the key of an application. Each verb must find what it is to print."""
    (folder / "dspex.toml").write_text(f'app = "{app}"\n[server]\nurl = "{url}"\n[engine]\nencrypt_key_env = "KEY"\n')
    every = "import sys; from dspex.__main__ import main; print([main(one) for one in eval(sys.argv[1])], file=sys.stderr)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", every, repr(verbs)),
        cwd=folder,
        env={**os.environ, "KEY": KEYS["KEY"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = (text.decode() for text in await process.communicate())
    codes = eval(errors.splitlines()[-1])
    wrong = [(verb, code) for verb, code in zip(verbs, codes, strict=True) if code != ("publish" in verb)]
    assert not wrong, errors
    return out + errors


def keep(state: Any, data: Any, context: Any) -> Any:
    """Keeps what is secret, and hands it on."""
    return {"card": data["card"]}, [{**data, "saw": data["card"]}]
