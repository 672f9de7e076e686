"""Who has the rights of an approver sees what waits, decides about it, and can do nothing else."""

from __future__ import annotations

import json
import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cli_bench import Project
from waiting import until

from dspex.bus import nats, subjects
from dspex.bus.errors import NotAllowed
from dspex.bus.local.server import LocalServer
from dspex.bus.port import NewMessage
from dspex.engine.client.client import Client
from dspex.engine.hosting.host import Host
from dspex.operators.topology import Topology

APP = "shop"


@pytest.mark.asyncio
async def test_an_approver_decides_with_the_rights_of_that_role_and_writes_no_event(tmp_path: Path) -> None:
    done = Project(tmp_path, APP).here("server", "permissions", "--role", "approver")
    user = re.sub(r"\$[A-Z_]+_PASSWORD", "p", done.out)
    config = (
        f"accounts {{ A {{ jetstream: enabled, users: [\n{user}\n{{ user: all, password: p }}\n] }} }}\nno_auth_user: all\n"
    )
    topology = Topology("refunds")
    topology.source("shop.refunds").approve(name="ok").sink("shop.paid")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(LocalServer(tmp_path / "server" / "js", port=None, extra_config=config))
        buses = [
            await nats.connect(server.url, user=user, password="p", inbox_prefix=f"_INBOX_{user}")
            for user in ("all", "approver")
        ]
        for bus in buses:
            stack.push_async_callback(bus.close)
        host = Host(buses[0], APP, [topology.graph], engine="e")
        await host.start()
        stack.push_async_callback(host.drain)
        client, approver = (Client(bus=bus, app=APP) for bus in buses)

        def waits() -> int:
            """How many events wait, as far as that is stored."""
            all = [p for r in host.runners for p in r.partitions.values()]
            return sum(len(p.tables.keyed.rows) for p in all) if all and all[0].settled.is_set() else -1

        for n in (1, 2):
            await client.publish("shop.refunds", {"n": n})
        await until(lambda: waits() == 2)
        first, second = [one async for one in approver.approvals()]
        await approver.decide(first, "accept", edit={"n": 3})
        await approver.decide(second.id[-8:], "reject")
        await until(lambda: waits() == 0)
        found = await buses[0].scan(subjects.stream(APP), ["shop.paid"], start=1, stop=1 << 40)
        assert [json.loads(m.data) for m in found] == [{"n": 3}]
        for subject in (subjects.edge(APP, "refunds", "s1", 0), "shop.paid"):
            with pytest.raises(NotAllowed):
                await buses[1].publish(NewMessage(subject, b"x"))
