"""Views that look again every two seconds: what was read once and is as it was is not read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from engine_lab import APP, Lab

from dspex.bus.memory.server import MemoryBus, MemoryServer
from dspex.bus.message import Message
from dspex.bus.port import BusEvents
from dspex.bus.serving.sessions.state import SessionState
from dspex.bus.serving.sessions.store import SessionStore
from dspex.bus.settings.model import Settings
from dspex.engine.client import letters
from dspex.engine.client.client import Client
from dspex.engine.gateway.app import app
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
START = datetime(2026, 1, 1, tzinfo=UTC)


class CountedBus(MemoryBus):
    """A connection that counts what is asked, and the messages that it gets."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, BusEvents())
        self.asked, self.got = 0, 0

    async def trip(self) -> None:
        self.asked += 1
        await super().trip()

    async def page(self, stream: str, filters: Sequence[str], **options: Any) -> list[Message]:
        found = await super().page(stream, filters, **options)
        self.got += len(found)
        return found


class LabPage:
    """The gateway of a lab, as a page asks it."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.bus = lab, CountedBus(lab.server)
        self._web = app(Settings(app=APP), client=Client(bus=self.bus, app=APP))

    def get(self, path: str) -> Any:
        async def asked() -> Any:
            transport = httpx.ASGITransport(app=self._web)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return (await http.get(path)).raise_for_status().json()

        self.bus.asked = self.bus.got = 0
        return self.lab.run(asked())


def failing(data: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(f"{data['why']} at {data['n']}")


def test_groups_of_letters_read_those_that_came_meanwhile_and_all_when_some_are_gone(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in").map(failing, name="work").sink("out")
    one = lab(topology)
    one.start()
    page = LabPage(one)

    def counts() -> dict[str, int]:
        found = {group["message"].split()[3]: group["count"] for group in page.get("/v1/letters/groups")["groups"]}
        assert sum(found.values()) == len(one.letters())
        return found

    assert counts() == {}
    for n in range(30):
        one.publish("in", {"why": "odd" if n % 2 else "even", "n": n})
    assert counts() == {"odd": 15, "even": 15}
    assert counts() == {"odd": 15, "even": 15}
    assert page.bus.got == 0
    one.publish("in", {"why": "new", "n": 31})
    assert counts() == {"odd": 15, "even": 15, "new": 1}
    assert page.bus.got == 1
    one.run(letters.drop(one.client.bus, APP, [one.letters()[0].sequence]))
    assert counts() == {"odd": 15, "even": 14, "new": 1}
    one.run(letters.drop(one.client.bus, APP, [one.letters()[-1].sequence]))
    assert counts() == {"odd": 15, "even": 14}
    assert page.get("/v1/letters/groups?reason=None")["groups"] == []


def test_windows_are_read_where_a_partition_has_gone_on_and_nowhere_else(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in", time="at").key_by("k").window("1m").count(name="minutes").sink("out")
    one = lab(topology)
    one.start()
    page = LabPage(one)
    for n in range(40):
        one.publish("in", {"k": f"k{n}", "at": START.isoformat()})
    one.advance(5)

    def values() -> dict[str, int]:
        return {window["key"]: window["value"] for window in page.get("/v1/windows")["windows"]}

    assert values() == {f"k{n}": 1 for n in range(40)}
    whole = page.bus.asked
    assert values() == {f"k{n}": 1 for n in range(40)}
    same = page.bus.asked
    assert same < whole / 4
    one.publish("in", {"k": "k7", "at": START.isoformat()})
    one.advance(5)
    assert values() == {f"k{n}": 2 if n == 7 else 1 for n in range(40)}
    assert same < page.bus.asked < whole / 2


def test_of_sessions_those_are_read_that_were_used_meanwhile(lab: MakeLab) -> None:
    one = lab()
    store, page = SessionStore(one.client.bus, APP), LabPage(one)

    def used(id: str, count: int) -> None:
        one.run(store.change(id, lambda state, now: SessionState(ttl=3600.0, touched=now, count=count)))

    def turns() -> dict[str, int]:
        return {session["id"]: session["turns"] for session in page.get("/v1/sessions")["sessions"]}

    assert turns() == {}
    for n in range(40):
        used(f"s{n}", 1)
    assert turns() == {f"s{n}": 1 for n in range(40)}
    assert page.bus.asked > 40
    assert turns() == {f"s{n}": 1 for n in range(40)}
    assert page.bus.asked < 10
    used("s7", 2)
    used("new", 1)
    one.run(store.remove("s8"))
    assert turns() == {f"s{n}": 2 if n == 7 else 1 for n in range(40) if n != 8} | {"new": 1}
    assert page.bus.asked < 10
    one.advance(3601)
    assert all(session["ended"] for session in page.get("/v1/sessions")["sessions"]), "nothing was written for that"


def test_a_list_of_runs_does_not_look_for_its_time_again_for_each_source(lab: MakeLab) -> None:
    def asked(sources: int) -> int:
        topology = Topology("t")
        for n in range(sources):
            topology.source(f"in{n}").map(dict, name=f"same{n}").sink(f"out{n}")
        one = lab(topology)
        one.start()
        for n in range(200):
            one.publish(f"in{n % sources}", {"n": n})
        page = LabPage(one)
        assert len(page.get("/v1/runs?limit=10")["runs"]) == 10
        return page.bus.asked

    few = asked(1)
    assert asked(5) <= few + 4 * 6, "of each more: where its stream is, its last events, and those of the runs"


def test_a_list_of_runs_is_read_again_where_anything_was_written_and_only_there(lab: MakeLab, tmp_path: Path) -> None:
    def working(name: str) -> Lab:
        topology = Topology(name)
        topology.source("in").map(dict, name="same").sink("out")
        one = lab(topology)
        one.start()
        return one

    here, elsewhere = working("t"), working("t")
    elsewhere.advance(60)
    page = LabPage(here)

    def listed(query: str = "") -> list[str]:
        return [run["id"] for run in page.get(f"/v1/runs?limit=10{query}")["runs"]]

    runs = [here.publish("in", {"n": n}) for n in range(5)]
    here.advance(1)
    assert listed() == runs[::-1]
    whole, read = page.bus.asked, page.bus.got
    assert listed() == runs[::-1]
    assert (page.bus.got, page.bus.asked < whole, read > 0) == (0, True, True)
    runs.append(here.publish("in", {"n": 5}))
    assert listed() == runs[::-1]
    assert listed("&status=failed") == []
    other = elsewhere.client.run(elsewhere.publish("in", {"n": 6}))
    elsewhere.advance(1)
    elsewhere.run(other.export(tmp_path / "run.jsonl"))
    here.run(here.client.import_run(tmp_path / "run.jsonl"))  # no stream has anything of it
    assert listed() == [other.id, *runs[::-1]]
    assert listed(f"&before={runs[1]}") == runs[:1]
    assert listed() == [other.id, *runs[::-1]]


def test_what_waits_for_people_is_read_again_where_anything_was_written_and_only_there(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in").approve(name="check").sink("out")
    one = lab(topology)
    one.start()
    page = LabPage(one)

    def waiting() -> dict[int, Any]:
        return {approval["shown"]["n"]: approval for approval in page.get("/v1/approvals")["approvals"]}

    for n in range(5):
        one.publish("in", {"n": n})
    one.advance(1)
    assert waiting().keys() == {0, 1, 2, 3, 4}
    whole, found = page.bus.asked, waiting()
    assert (found.keys(), page.bus.asked < whole) == ({0, 1, 2, 3, 4}, True)
    one.run(one.client.decide(found[0]["id"], "accept"))
    one.advance(1)
    assert waiting().keys() == {1, 2, 3, 4}
    one.run(one.client.run(found[1]["run"]).cancel())
    one.advance(1)
    assert waiting().keys() == {2, 3, 4}, "nobody can decide about what was cancelled"


def test_the_state_of_the_application_is_read_once_a_second_for_all_who_look(lab: MakeLab) -> None:
    one = lab()
    page = LabPage(one)
    assert page.get("/v1/status")["server"]["app"] == APP
    assert page.bus.asked > 0
    page.get("/v1/status")
    assert page.bus.asked == 0
    one.advance(5)  # as long as it stands at most
    page.get("/v1/status")
    assert page.bus.asked > 0


def test_of_partitions_that_nobody_owns_those_are_read_again_that_have_a_new_entry(lab: MakeLab) -> None:
    topology = Topology("t")
    topology.source("in").key_by("k").program("p:q", "k -> text", name="ask").sink("out")
    one = lab(topology)
    one.start()
    for n in range(40):
        one.publish("in", {"k": f"k{n}"})
    one.advance(1)
    one.drain()
    one.advance(1)
    bus = CountedBus(one.server)
    client = Client(bus=bus, app=APP)

    def stages() -> list[dict[str, Any]]:
        bus.asked = bus.got = 0
        return [{**row, "oldest": None} for row in one.run(client.status())["stages"]]

    first, whole = stages(), bus.asked
    assert [(row["unowned"], row["open_calls"]) for row in first] == [(1, 0), (64, 40)]
    assert (stages(), bus.asked < whole / 4) == (first, True)
    one.start("b")
    one.answers["ask"] = lambda inputs, _: {"text": inputs["k"]}
    one.work()
    one.advance(5)
    one.drain("b")
    one.advance(1)
    found = stages()
    assert [row["open_calls"] for row in found] == [0, 0]
    assert found == [{**row, "oldest": None} for row in one.run(Client(bus=bus, app=APP).status())["stages"]]
