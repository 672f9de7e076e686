"""Who has the rights of an approver sees what waits, decides about it, and can do nothing else; an operator withdraws it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from cli_bench import Project
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.errors import NotAllowed
from dspex.bus.local.server import LocalServer
from dspex.bus.port import Bus, NewMessage
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

APP = "shop"


@asynccontextmanager
async def refunds(folder: Path, role: str) -> AsyncGenerator[tuple[list[Bus], Host]]:
    """A server with who may do all and who has a role, an engine whose events wait; the connections of both."""
    done = Project(folder, APP).here("server", "permissions", "--role", role)
    user = re.sub(r"\$[A-Z_]+_PASSWORD", "p", done.out)
    config = (
        f"accounts {{ A {{ jetstream: enabled, users: [\n{user}\n{{ user: all, password: p }}\n] }} }}\nno_auth_user: all\n"
    )
    topology = Topology("refunds")
    topology.source("shop.refunds").approve(name="ok").sink("shop.paid")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(LocalServer(folder / "server" / "js", port=None, extra_config=config))
        buses = [
            await nats.connect(server.url, user=user, password="p", inbox_prefix=f"_INBOX_{user}") for user in ("all", role)
        ]
        for bus in buses:
            stack.push_async_callback(bus.close)
        host = Host(buses[0], APP, [topology.graph], engine="e")
        await host.start()
        stack.push_async_callback(host.drain)
        yield [*buses], host


def waits(host: Host) -> int:
    """How many events wait, as far as that is stored."""
    all = [p for r in host.runners for p in r.partitions.values()]
    return sum(len(p.tables.keyed.rows) for p in all) if all and all[0].settled.is_set() else -1


@pytest.mark.asyncio
async def test_an_approver_decides_with_the_rights_of_that_role_and_writes_no_event(tmp_path: Path) -> None:
    async with refunds(tmp_path, "approver") as (buses, host):
        client, approver = (Client(bus=bus, app=APP) for bus in buses)
        for n in (1, 2):
            await client.publish("shop.refunds", {"n": n})
        await until(lambda: waits(host) == 2)
        first, second = [one async for one in approver.approvals()]
        await approver.decide(first, "accept", edit={"n": 3})
        await approver.decide(second.id[-8:], "reject")
        await until(lambda: waits(host) == 0)
        found = await buses[0].scan(subjects.stream(APP), ["shop.paid"], start=1, stop=1 << 40)
        assert [json.loads(m.data) for m in found] == [{"n": 3}]
        for subject in (subjects.edge(APP, "refunds", "s1", 0), "shop.paid"):
            with pytest.raises(NotAllowed):
                await buses[1].publish(NewMessage(subject, b"x"))


@pytest.mark.asyncio
async def test_an_operator_cancels_a_run_that_waits_with_the_rights_of_that_role(tmp_path: Path) -> None:
    async with refunds(tmp_path, "operator") as (buses, host):
        client, operator = (Client(bus=bus, app=APP) for bus in buses)
        run = await client.publish("shop.refunds", {"n": 1})
        await until(lambda: waits(host) == 1)
        asked = operator.run(run.id)
        await asked.cancel()

        async def is_cancelled() -> bool:
            return (await asked.info()).status == "cancelled"

        await until(is_cancelled)
        assert [one async for one in operator.approvals()] == []
