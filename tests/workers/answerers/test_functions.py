"""Functions that enrich in a real child process: over HTTP, in a database, and those that go wrong."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from pool_bench import Bench, config, running, work

from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.call_spec import CallSpec

NO_MODEL: dict[str, Any] = {"profiles": {}, "programs": ("lookups:*",), "slots": 4}


def enrich(name: str, inputs: dict[str, Any], **options: Any) -> CallRequest:
    return work(spec=CallSpec("enrich", name if ":" in name else f"lookups:{name}", ""), inputs=inputs, **options)


def failed(record: CallRecord) -> tuple[str, str]:
    assert record.error is not None
    return record.error["type"], record.error["message"]


class Shop:
    """A service that knows customers. `hung_up`: set when a caller does not wait for the answer any more."""

    def __init__(self) -> None:
        self.closed_once = False
        self.hung_up = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        if request.match_info["name"] == "busy" and not self.closed_once:
            self.closed_once = True
            return web.Response(status=503, headers={"Retry-After": "7.5"})
        return web.json_response({"name": request.match_info["name"], "tier": "gold"})

    async def hang(self, request: web.Request) -> web.Response:
        try:
            return await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.hung_up.set()
            raise


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop() -> AsyncIterator[tuple[Shop, str]]:
    shop, app = Shop(), web.Application()
    app.add_routes([web.get("/customers/{name}", shop.answer), web.get("/hang", shop.hang)])
    async with TestServer(app, handler_cancellation=True) as server:
        yield shop, str(server.make_url("/"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    async with running(config("", **NO_MODEL)) as found:
        yield found


@pytest.mark.asyncio(loop_scope="module")
async def test_a_function_asks_a_server_and_knows_its_call(bench: Bench, shop: tuple[Shop, str]) -> None:
    item = enrich("customer", {"url": f"{shop[1]}customers/ada"})
    (record,) = await bench.ask(item)
    assert record.outputs == {"customer": {"name": "ada", "tier": "gold"}, "call": item.call}, record.error
    assert (record.route, record.lm, record.usage) == ("worker", "", {})
    assert record.program.startswith("lookups:customer#")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_function_gets_the_type_that_it_is_annotated_with_and_may_return_one(bench: Bench, tmp_path: Path) -> None:
    with sqlite3.connect(path := tmp_path / "bank.db") as database:
        database.execute("CREATE TABLE accounts (customer TEXT, balance REAL)")
        database.execute("INSERT INTO accounts VALUES ('ada', 12.5)")
    good = {"customer": "ada", "since": "2026-01-02", "database": str(path), "other": 1}
    found, misfit = await bench.ask(enrich("balance", good), enrich("balance", {**good, "since": "soon"}))
    assert found.outputs == {"balance": 12.5, "since": "2026-01-02"}, found.error
    assert failed(misfit)[0] == "InvalidInput"
    assert "lookups:balance wants Account" in failed(misfit)[1]
    assert "since" in failed(misfit)[1]


@pytest.mark.asyncio(loop_scope="module")
async def test_as_many_calls_run_at_once_as_the_pool_has_slots(bench: Bench) -> None:  # N13
    records = await bench.ask(*[enrich("meeting", {}) for _ in range(12)])
    assert {(r.outputs or {}).get("most") for r in records} == {NO_MODEL["slots"]}, records


@pytest.mark.asyncio(loop_scope="module")
async def test_a_function_that_takes_too_long_is_really_cancelled(bench: Bench, shop: tuple[Shop, str]) -> None:
    (late,) = await bench.ask(enrich("customer", {"url": f"{shop[1]}hang"}, timeout=0.3))
    assert failed(late)[0] == "CallTimeout"
    async with asyncio.timeout(60):
        await shop[0].hung_up.wait()
    assert bench.pool.children.restarts == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_function_raises_is_a_program_error_with_its_traceback_and_retry_later_is_passed_on(
    bench: Bench, shop: tuple[Shop, str]
) -> None:
    broken, closed = await bench.ask(enrich("raises", {"name": "x"}), enrich("customer", {"url": f"{shop[1]}customers/busy"}))
    assert failed(broken) == ("ProgramError", "lookups:raises raised LookupError: nobody is called x")
    assert broken.error is not None
    assert "in raises" in broken.error["traceback"]
    assert closed.error is not None
    assert (closed.error["type"], closed.error["retry_after"]) == ("RetryLater", 7.5)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_no_function_that_adds_fields_is_refused_with_what_to_do(bench: Bench) -> None:
    names = ("blocks", "nothing", "unsendable", "absent", "os:system")
    records = await bench.ask(*[enrich(name, {}) for name in names])
    said = {name: (r.error or {}) for name, r in zip(names, records, strict=True)}
    assert {name: e["type"] for name, e in said.items()} == dict.fromkeys(names, "ProgramError")
    assert "no async function" in said["blocks"]["message"]
    assert "asyncio.to_thread" in said["blocks"]["fix"]
    assert "returned NoneType" in said["nothing"]["message"]
    assert "return a mapping" in said["nothing"]["fix"]
    assert "found" in said["unsendable"]["message"]
    assert "allow-list" in said["os:system"]["message"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pool_of_functions_imports_no_dspy(bench: Bench) -> None:
    (record,) = await bench.ask(enrich("imported", {}))
    assert record.outputs == {"dspy": False}, record.error
    assert "lookups:balance" in bench.pool.status.full()["programs"]["found"]
