"""Streams on a real server: what dspex makes there, and sources in streams of others that are not what they were."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from structlog.testing import capture_logs
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.errors import BusError, TopologyError
from dspex.bus.local.server import LocalServer
from dspex.bus.nats import NatsBus
from dspex.bus.port import NewMessage
from dspex.engine.graph.lanes import Backfill
from dspex.engine.graph.submitted import submitted
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.delete import delete
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology


def reading(source: str, sink: str) -> Topology:
    topology = Topology("reading")
    topology.source(source).sink(sink)
    return topology


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
@pytest.mark.asyncio
async def test_a_source_whose_stream_removes_what_was_read_is_refused_with_the_reason(
    bus: NatsBus, js: JetStreamContext, unique: str, retention: Any
) -> None:
    await js.add_stream(name=unique, subjects=[f"{unique}.in"], retention=retention)
    with pytest.raises(TopologyError) as e:
        await apply(bus, unique, [reading(f"{unique}.in", f"{unique}.out").graph])
    assert e.value.code == "DX239"
    assert retention in e.value.message
    assert "limits" in e.value.fix


@pytest.mark.asyncio
async def test_a_subject_is_not_captured_whose_stream_of_others_was_deleted(
    bus: NatsBus, js: JetStreamContext, unique: str
) -> None:
    graph = reading(f"{unique}.in", f"{unique}.out").graph
    await js.add_stream(name=unique, subjects=[f"{unique}.in"])
    await apply(bus, unique, [graph])
    await js.delete_stream(unique)
    await apply(bus, unique, [graph])
    assert await bus.stream_of(f"{unique}.in") is None


@pytest.mark.asyncio
async def test_everything_of_an_application_is_made_at_once_and_nothing_of_it_can_be_rolled_up(
    bus: NatsBus, js: JetStreamContext, unique: str
) -> None:
    graphs = [reading(f"{unique}.in", f"{unique}.out").graph, submitted(unique, ("lightweight",))]
    await apply(bus, unique, graphs, max_bytes=1 << 20)
    there = list(await js.streams_info())
    while page := await js.streams_info(offset=len(there)):  # a server tells of 256 at a time, and other tests have some, too
        there += page
    infos = {i.config.name: i.config for i in there if i.config.name and unique in i.config.name}
    app = subjects.stream(unique)
    kinds = [app, f"{app}_sources", f"{app}_requests", f"{app}_answers", f"{app}_told", f"OBJ_{app}_payloads"]
    kinds += [f"KV_{app}{kind}" for kind in ("", "_applied", "_sessions", "_limits", "_cache", "_kept")]
    assert set(infos) == set(kinds)
    assert not any(c.allow_rollup_hdrs or c.allow_msg_ttl or c.allow_msg_schedules for c in infos.values())
    assert (infos[app].max_consumers, infos[app].max_bytes) == (4000, 1 << 20)
    assert infos[f"{app}_sources"].max_bytes == (1 << 20) // 5
    assert infos[f"{app}_told"].max_bytes == (1 << 20) // 100
    assert infos[f"{app}_requests"].max_age == 86400.0 + 600.0
    assert (infos[f"{app}_answers"].max_age, infos[f"{app}_answers"].max_bytes) == (30 * 86400.0, (1 << 20) // 30)


@pytest.mark.asyncio
async def test_pipelines_of_two_applications_on_one_stream_each_get_all_of_it_whichever_starts_again(  # N12
    bus: NatsBus, unique: str
) -> None:
    await somebodys_stream(bus, unique)

    async def start(app: str) -> Host:
        host = Host(bus, app, [reading(f"{unique}.in", f"{app}.out").graph], engine=f"{app}-{len(hosts)}")
        await host.start()
        hosts.append(host)
        return host

    async def have(number: int) -> bool:
        return all([await bus.count(subjects.stream(app), [f"{app}.out"]) == number for app in apps])

    apps, hosts = [f"{unique}a", f"{unique}b"], list[Host]()
    first, second = [await start(app) for app in apps]
    await bus.publish(NewMessage(f"{unique}.in", b"1"))
    await until(partial(have, 1))
    await first.drain()
    await bus.publish(NewMessage(f"{unique}.in", b"2"))
    again = await start(apps[0])
    await bus.publish(NewMessage(f"{unique}.in", b"3"))
    await until(partial(have, 3))
    for host in (again, second):
        await host.drain()


@pytest.mark.asyncio
async def test_what_others_made_under_a_name_of_the_application_is_not_deleted_with_it(
    bus: NatsBus, js: JetStreamContext, unique: str
) -> None:
    name = f"KV_{subjects.stream(unique)}_cache"
    await js.add_stream(name=name, subjects=[f"$KV.{name[3:]}.>"], allow_direct=True)
    await apply(bus, unique, [reading(f"{unique}.in", f"{unique}.out").graph])
    done = await delete(bus, unique, "reading")
    assert (done.whole, done.others, len(done.removed)) == (True, [f"bucket {name[3:]}"], 10)
    assert await bus.has("bucket", name[3:])
    assert not await bus.has("stream", subjects.stream(unique))


@pytest.mark.asyncio
async def test_a_public_copy_of_cloud_events_is_read_by_who_knows_nothing_of_dspex(
    bus: NatsBus, js: JetStreamContext, unique: str
) -> None:
    topology = Topology("copying")
    topology.source(f"{unique}.in").sink(f"{unique}.out.{{n}}", cloudevents="binary", stream=f"{unique}_public")
    host = Host(bus, unique, [topology.graph], engine="a")
    await host.start()
    try:
        await bus.publish(NewMessage(f"{unique}.in", b'{"n": 1}', {subjects.KEY: "zürich 1"}))
        theirs = await js.pull_subscribe(f"{unique}.out.1", stream=f"{unique}_public")
        (message,) = await theirs.fetch(1, timeout=60)
    finally:
        await host.drain()
    headers = message.headers or {}
    assert (message.data, headers["Content-Type"], headers["ce-type"]) == (b'{"n":1}', "application/json", f"{unique}.out.1")
    assert headers["ce-subject"] == "z%C3%BCrich%201"


# -- sources that are not what they were
async def somebodys_stream(bus: NatsBus, name: str) -> None:
    config = {"name": name, "subjects": [f"{name}.in"], "storage": "file"}
    await bus.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode())


async def engine(bus: NatsBus, name: str, policy: Any) -> Host:
    topology = Topology("reading")
    topology.source(f"{name}.in", on_gap=policy).map(lambda d: d, name="same").sink(f"{name}.out")
    host = Host(bus, name, [topology.graph], engine="a")
    await host.start()
    return host


async def publish(bus: NatsBus, name: str, *numbers: int) -> None:
    for n in numbers:
        await bus.publish(NewMessage(f"{name}.in", json.dumps({"n": n}).encode()))


async def outputs(bus: NatsBus, name: str) -> list[int]:
    info = await bus.stream(subjects.stream(name))
    assert info is not None
    return [json.loads(m.data)["n"] for m in await bus.scan(info.name, [f"{name}.out"], start=1, stop=info.last)]


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", ["stop", "skip"])
async def test_a_stream_that_is_deleted_made_again_and_refilled_at_once_under_a_live_engine_loses_no_event(
    bus: NatsBus, unique: str, policy: Any
) -> None:
    await somebodys_stream(bus, unique)
    await publish(bus, unique, 1, 2, 3)
    host = await engine(bus, unique, policy)

    async def are(*numbers: int) -> bool:
        return await outputs(bus, unique) == list(numbers)

    try:
        await until(lambda: are(1, 2, 3))
        await bus.request(f"$JS.API.STREAM.DELETE.{unique}", b"")
        await somebodys_stream(bus, unique)
        await publish(bus, unique, *range(4, 10))
        if policy == "skip":
            await until(lambda: are(*range(1, 10)))
            await publish(bus, unique, 10)
            await until(lambda: are(*range(1, 11)))
        else:
            await until(lambda: "made anew" in (host.runners[0].stopped or ""))
            assert await outputs(bus, unique) == [1, 2, 3]
    finally:
        await host.kill()


@pytest.mark.asyncio
@pytest.mark.parametrize("policy", ["stop", "skip"])
async def test_a_stream_whose_unread_events_were_all_purged_while_no_engine_ran_is_a_gap(
    bus: NatsBus, unique: str, policy: Any
) -> None:
    await somebodys_stream(bus, unique)
    await publish(bus, unique, 1, 2, 3)
    host = await engine(bus, unique, policy)

    async def are(*numbers: int) -> bool:
        return await outputs(bus, unique) == list(numbers)

    await until(lambda: are(1, 2, 3))
    await host.drain()
    await publish(bus, unique, *range(4, 10))
    await bus.request(f"$JS.API.STREAM.PURGE.{unique}", b"")
    host = await engine(bus, unique, policy)
    try:
        if policy == "skip":
            await publish(bus, unique, 10)
            await until(lambda: are(1, 2, 3, 10))
        else:
            await until(lambda: "trimmed" in (host.runners[0].stopped or ""))
    finally:
        await host.kill()


ACCOUNTS = """
accounts {
  A { jetstream: { max_mem: 1G, max_file: 600M, max_bytes_required: true }, users: [ { user: a, password: p } ] }
  B { jetstream: { max_mem: 1G, max_file: 600M, max_consumers: 3 }, users: [ { user: b, password: p } ] }
  C { jetstream: { max_mem: 1G, max_file: 600M, max_streams: 2 }, users: [ { user: c, password: p } ] }
  D { jetstream: enabled, users: [ { user: d, password: p } ] }
}
no_auth_user: d
"""


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[NatsBus]:
    bus = await nats.connect(url)
    yield bus
    await bus.close()


@pytest.mark.asyncio
async def test_an_application_gets_along_with_the_limits_of_an_account_or_says_which_to_raise(tmp_path: Path) -> None:
    graph = reading("in", "out").graph
    async with LocalServer(tmp_path / "js", port=None, extra_config=ACCOUNTS) as server:
        url = server.url.removeprefix("nats://").rpartition("@")[2]
        async with connected(f"nats://a:p@{url}") as bus:
            for _ in range(2):  # what is there keeps its limit
                await apply(bus, "shop", [graph], max_bytes=None)
            await bus.objects(subjects.objects("shop"))
            await bus.publish(NewMessage("in", b"{}"))
            found = [await bus.stream(name) for name in (subjects.stream("shop"), subjects.requests("shop"))]
            assert all(info is not None and info.max_bytes > 0 for info in found)
        for user, limit in (("b", "max_consumers"), ("c", "max_streams")):
            async with connected(f"nats://{user}:p@{url}") as bus:
                with pytest.raises(BusError) as e:
                    await apply(bus, "shop", [graph], max_bytes=None)
                assert e.value.fix.startswith(f"raise {limit} of the")


@pytest.mark.long
@pytest.mark.asyncio
async def test_buckets_that_are_made_at_once_share_what_an_account_may_store(tmp_path: Path) -> None:
    async with LocalServer(tmp_path / "js", port=None, extra_config=ACCOUNTS) as server:
        url = server.url.removeprefix("nats://").rpartition("@")[2]
        async with connected(f"nats://a:p@{url}") as bus:
            for n in range(20):
                names = [f"once-{n}-{k}" for k in range(8)]
                await asyncio.gather(*(bus.objects(name) for name in names))
                for name in names:
                    info = await bus.stream(f"OBJ_{name}")
                    assert info is not None
                    assert 0 < info.max_bytes < 600 << 20
                    assert await bus.remove("objects", name)


@pytest.mark.asyncio
async def test_a_source_whose_stream_takes_no_more_consumers_is_said_and_read_once_it_does(
    bus: NatsBus, js: JetStreamContext, unique: str
) -> None:
    await js.add_stream(name=unique, subjects=[f"{unique}.in"], max_consumers=1)
    await js.add_consumer(unique, durable_name="theirs")
    topology = reading(f"{unique}.in", f"{unique}.out")
    with capture_logs() as said:
        host = Host(bus, unique, [topology.graph], engine="e")
        await host.start()
        try:
            (stage,) = host.runners
            await until(lambda: stage.stopped is not None)
            assert "maximum consumers limit reached" in (stage.stopped or "")
            await js.delete_consumer(unique, "theirs")
            await bus.publish(NewMessage(f"{unique}.in", b"{}"))
            await until(lambda: stage.counters["event"] == 1)
            assert stage.stopped is None
        finally:
            await host.kill()
    assert len([line for line in said if line["event"] == "reading again soon"]) < 5


@pytest.mark.asyncio
async def test_what_is_built_from_history_on_a_server_has_it_all_and_gives_what_is_behind_the_boundary(
    bus: NatsBus, unique: str
) -> None:
    def counting(*, new: bool) -> Topology:
        topology = Topology("counting")
        stream = topology.source(f"{unique}.in")
        stream.sink(f"{unique}.out")
        if new:
            stream.key_by("k").stateful(counted, init=int, name="counted").sink(f"{unique}.counts")
        return topology

    async def stored(what: str) -> list[Any]:
        found = await bus.page(subjects.stream(unique), [f"{unique}.{what}"], start=1, stop=1 << 40)
        return [json.loads(m.data) for m in found]

    await apply(bus, unique, [counting(new=False).graph])
    for n in range(100):
        await bus.publish(NewMessage(f"{unique}.in", json.dumps({"k": f"k{n % 3}"}).encode()))
    await apply(bus, unique, [counting(new=True).graph], backfill=Backfill(3600.0))
    host = Host(bus, unique, [counting(new=True).graph], engine="a", heartbeat=0.1)
    await host.start()
    for _ in range(3):
        await bus.publish(NewMessage(f"{unique}.in", b'{"k": "k0"}'))

    async def done() -> bool:
        return len(await stored("counts")) == 3 and len(await stored("out")) == 103

    await until(done)
    await host.drain()
    assert await stored("counts") == [35, 36, 37]


def counted(state: int, data: Any, ctx: Any) -> tuple[int, list[int]]:
    return state + 1, [state + 1]
