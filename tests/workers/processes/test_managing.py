"""What a pool promises an operator: more and fewer workers, a drain and a restart, and no call fails for any of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from pool_bench import APP, POOL, Bench, config, running, work
from waiting import until

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, Saturated
from dspex.bus.records import CallRequest
from dspex.bus.serving import audit
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.client.client import Client
from dspex.engine.client.status import scaling

PROGRAMS = """
import asyncio, pathlib

async def version(data):
    return {{"reply": {version!r}}}

async def waits(data):
    "Until there is a file of that name beside this one."
    while not pathlib.Path(__file__).with_name(data["file"]).exists():
        await asyncio.sleep(0.01)
    return {{"reply": "waited"}}
"""


def written(folder: Path, version: str = "old") -> None:
    (folder / "shop.py").write_text(PROGRAMS.format(version=version))


def enrich(name: str = "version", **inputs: object) -> CallRequest:
    return work(spec=CallSpec("enrich", f"shop:{name}", ""), inputs=inputs)


def end(bench: Bench, file: str) -> None:
    """Let the calls end that wait for it."""
    (Path(bench.pool.config.path[0]) / file).touch()


async def replies(bench: Bench, *items: CallRequest) -> list[Any]:
    found = await bench.ask(*items)
    assert [record.error for record in found] == [None] * len(items)
    return [(record.outputs or {})["reply"] for record in found]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One process of a pool with two workers, for all tests here; each leaves two."""
    written(folder := tmp_path_factory.mktemp("shop"))
    async with running(config("", profiles={}, programs=("shop:*",), path=(str(folder),), size=2, slots=4)) as bench:
        yield bench


@pytest.fixture
def client(shop: Bench) -> Client:
    return Client(bus=shop.bus, app=APP)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pool_is_made_larger_and_smaller_while_its_calls_run_and_none_fails(shop: Bench, client: Client) -> None:
    asked = asyncio.gather(replies(shop, *[enrich("waits", file="scaled") for _ in range(8)]))
    await until(lambda: shop.pool.children.slots.busy == 8)
    await client.scale(POOL, 4)
    assert shop.pool.children.ready == 4
    await client.scale(POOL, 1)
    (row,) = await scaling.processes(shop.bus, APP, POOL)
    assert (row["size"], row.get("of")) == (1, 1)
    end(shop, "scaled")
    assert await asked == [["waited"] * 8]
    await client.scale(POOL, None)
    assert shop.pool.children.ready == 2
    (entry,) = [audit.read(m).what async for m in _last(shop, "scale")]
    assert entry == {"pool": POOL, "size": "default"}


async def _last(shop: Bench, verb: str) -> AsyncIterator[Any]:
    found = await shop.bus.last(subjects.stream(APP), subjects.audit(APP, verb))
    assert found is not None
    yield found


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pool_of_nobody_has_calls_wait_and_begins_with_them_when_it_has_workers(shop: Bench, client: Client) -> None:
    await client.scale(POOL, 0)
    assert shop.pool.free() == 0
    asked = asyncio.ensure_future(replies(shop, enrich()))
    await until(lambda: _backlog(shop))
    await client.scale(POOL, None)
    assert await asked in (["old"], ["new"])


async def _backlog(shop: Bench) -> int | None:
    return await shop.bus.backlog(subjects.stream(APP), subjects.work_consumer(POOL, 1))


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_drained_takes_nothing_and_hands_back_what_does_not_end(shop: Bench, client: Client) -> None:
    asked = asyncio.ensure_future(replies(shop, *[enrich("waits", file=file) for file in ("drained", "started")]))
    await until(lambda: shop.pool.children.slots.busy == 2)
    end(shop, "drained")
    (done,) = await scaling.drain(shop.bus, APP, POOL, shop.pool.id, grace=1.0)
    assert (done.id, done.why) == (shop.pool.id, "")
    assert (shop.pool.children.ready, shop.pool.free()) == (0, 0)
    with pytest.raises(Saturated):  # nobody listens
        await shop.bus.request(f"$SRV.PING.{subjects.service(APP, POOL)}", b"")
    late = asyncio.ensure_future(replies(shop, enrich()))
    await until(lambda: not shop.joined)
    assert not asked.done()
    end(shop, "started")
    await scaling.restart(shop.bus, APP, POOL, None)
    assert shop.pool.children.ready == 2
    assert await late in (["old"], ["new"])
    assert await asked == ["waited", "waited"]
    await until(lambda: shop.joined)
    assert (await shop.bus.request(f"$SRV.PING.{subjects.service(APP, POOL)}.{shop.pool.id}", b"")).data


@pytest.mark.asyncio(loop_scope="module")
async def test_a_restart_loads_what_the_programs_are_now_and_no_call_fails(shop: Bench, client: Client) -> None:
    spec = CallSpec("enrich", "shop:version", "", route="auto", cache=3600.0)
    assert [await replies(shop, work(spec=spec, inputs={})) for _ in range(2)] == [["old"]] * 2  # no other test writes it
    written(Path(shop.pool.config.path[0]), "new")
    asked = asyncio.gather(replies(shop, *[enrich("waits", file="restarted") for _ in range(4)]))
    await until(lambda: shop.pool.children.slots.busy == 4)
    (done,) = await scaling.restart(shop.bus, APP, POOL, None)
    assert done.why == ""
    assert await replies(shop, enrich()) == ["new"]
    assert await replies(shop, work(spec=spec, inputs={})) == ["new"], "an answer of the code before is of another version"
    end(shop, "restarted")
    assert await asked == [["waited"] * 4]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pool_that_is_made_smaller_while_it_restarts_ends_with_both(shop: Bench, client: Client) -> None:
    children = shop.pool.children
    before = {child.pid for child in children.children}
    restarted = asyncio.gather(children.restart())
    await until(lambda: {child.pid for child in children.children} - before)
    await children.resize(1)
    await asyncio.wait_for(restarted, 60)
    await until(lambda: len(children.children) == 1)
    assert not {child.pid for child in children.slots.usable} & before
    await client.scale(POOL, None)
    assert shop.pool.children.ready == 2


@pytest.mark.asyncio(loop_scope="module")
async def test_who_is_not_there_is_told_and_nothing_is_stored(shop: Bench, client: Client) -> None:
    with pytest.raises(Saturated, match="no process of pool gpu is running"):
        await client.scale("gpu", 3)
    assert await scaling.wanted(shop.bus, APP, "gpu") is None
    with pytest.raises(Saturated, match="no process nobody of pool light"):
        await scaling.drain(shop.bus, APP, POOL, "nobody", 1.0)
    for size in (-1, 10_001, True):
        with pytest.raises(ConfigError, match="cannot have"):
            await client.scale(POOL, size)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "order",
    [b"", b"[]", b'{"kind": "kill"}', b'{"kind": "drain", "grace": -1}', b'{"kind": "drain", "grace": "1"}', b'{"process": 1}'],
)
async def test_what_is_no_order_does_nothing(shop: Bench, client: Client, order: bytes) -> None:
    await shop.bus.send(subjects.manage(APP, POOL), order)
    await shop.bus.send(subjects.control(APP, POOL), orjson.dumps({"kind": "drain"}))  # where callers may send
    assert await replies(shop, enrich()) in (["old"], ["new"])
    assert not shop.pool.draining
