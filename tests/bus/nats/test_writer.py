"""A write that meets a frozen, dead, full or forbidding server: landed, refused or unsettled, and never a wrong one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest

from dspex.bus.errors import (
    BusError,
    DataError,
    Fenced,
    NotAllowed,
    NotStored,
    PayloadTooLarge,
    StreamFull,
    Unreachable,
    Unsettled,
)
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus, connect
from dspex.bus.nats.failures import refused
from dspex.bus.nats.protocol import WireParser
from dspex.bus.port import BusEvents, NewMessage, StreamConfig

Open = Callable[..., Awaitable[NatsBus]]


async def stream(bus: NatsBus, **options: Any) -> None:
    await bus.ensure_stream(StreamConfig("S", ["s.>"], **options))


async def back(bus: NatsBus) -> None:
    """Wait until the bus is connected again."""
    await asyncio.wait_for(bus._connection.up.wait(), 30)


@pytest.mark.asyncio
async def test_a_commit_without_an_answer_is_unsettled_and_may_land_later(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await stream(bus)
    server.freeze()
    with pytest.raises(Unsettled):
        await bus.commit([NewMessage("s.a", b"1"), NewMessage("s.log", b"2", expect=0)], timeout=0.3)
    with pytest.raises(Unsettled):
        await bus.publish(NewMessage("s.b", b"3"), timeout=0.3)
    server.thaw()
    claim = await bus.publish(NewMessage("s.claim", b""))  # behind them on the connection: after it they cannot land any more
    assert (await bus.scan("S", ["s.>"], start=1, stop=claim.sequence))[0].data == b"1"
    with pytest.raises(Fenced):
        await bus.commit([NewMessage("s.a", b"1"), NewMessage("s.log", b"2", expect=0)])


@pytest.mark.asyncio
async def test_a_write_in_flight_when_the_server_dies_is_unsettled_at_once(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await stream(bus)
    server.freeze()
    writes = [
        asyncio.create_task(bus.commit([NewMessage("s.a", b"1"), NewMessage("s.a", b"2")], timeout=60)),
        asyncio.create_task(bus.publish(NewMessage("s.a", b"3"), timeout=60)),
    ]
    await asyncio.sleep(0)
    server.kill()
    for write in writes:
        with pytest.raises(Unsettled):
            await asyncio.wait_for(write, 30)


@pytest.mark.asyncio
async def test_nothing_written_while_the_server_is_away_lands_later(server: Any, opened: Open) -> None:
    gone = asyncio.Event()
    state = BusEvents(state=lambda state, why: gone.set() if state == "disconnected" else None)
    bus = await opened(server.start().url, events=state)
    await stream(bus)
    server.kill()
    await asyncio.wait_for(gone.wait(), 30)
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: bus.publish(NewMessage("s.a", b"1")),
        lambda: bus.commit([NewMessage("s.a", b"2"), NewMessage("s.a", b"3")]),
        lambda: bus.send("s.a", b"4"),
        lambda: bus.request("s.a", b"5"),
    ]
    for write in writes:
        with pytest.raises(Unreachable):
            await asyncio.wait_for(write(), 30)
    server.start()
    await back(bus)
    assert (await bus.publish(NewMessage("s.a", b"6"))).sequence == 1


@pytest.mark.asyncio
async def test_an_oversized_message_is_refused_and_the_connection_lives(server: Any, opened: Open) -> None:
    states: list[str] = []
    bus = await opened(server.start().url, events=BusEvents(state=lambda state, why: states.append(state)))
    await stream(bus)
    head = {"h": "x" * 500}
    size = bus.max_payload - 500 - len("NATS/1.0\r\nh: \r\n\r\n")
    largest = NewMessage("s.a", b"x" * size, head)
    await bus.publish(largest)
    await bus.commit([largest._replace(expect=1), largest])  # what fits in a publish fits in a commit
    larger = NewMessage("s.a", b"x" * (size + 1), head)
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: bus.publish(larger),
        lambda: bus.commit([NewMessage("s.a", b""), larger]),
        lambda: bus.send("s.a", larger.data, headers=head),
        lambda: bus.request("s.a", larger.data, headers=head),
    ]
    for write in writes:
        with pytest.raises(PayloadTooLarge):
            await write()
    assert (await bus.publish(NewMessage("s.a", b""))).sequence == 4
    assert states == ["connected"]


@pytest.mark.asyncio
async def test_an_invalid_message_keeps_its_whole_commit_from_being_sent(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await stream(bus)
    for bad in (
        NewMessage("s.a b", b""),
        NewMessage("s.a\r\nPUB x 0\r\n", b""),
        NewMessage("s.*", b""),
        NewMessage("", b""),
        NewMessage("s.a", b"", {"h": "1\r\nNats-Batch-Commit: 1"}),
        NewMessage("s.a", b"", {"h": "1\n2"}),
        NewMessage("s.a", b"", {"h:": "1"}),
        NewMessage("s.a", b"", {"": "1"}),
        NewMessage("s.a", b"", {"h": "\ud800"}),
    ):
        with pytest.raises(DataError):
            await bus.commit([NewMessage("s.a", b""), bad])
        with pytest.raises(DataError):
            await bus.publish(bad)
    info = await bus.stream("S")
    assert info is not None
    assert info.messages == 0


@pytest.mark.asyncio
async def test_a_commit_waits_while_the_server_holds_too_many_open_batches(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await stream(bus)
    for n in range(50):  # so many may be open at once on one stream
        await bus.send("s.a", b"", headers={"Nats-Batch-Id": f"b{n}", "Nats-Batch-Sequence": "1"})
    drafts = [NewMessage("s.b", b"1"), NewMessage("s.b", b"2")]
    with pytest.raises(StreamFull):
        await bus.commit(drafts, timeout=2)
    waiting = asyncio.create_task(bus.commit(drafts, timeout=5))
    await bus._connection.flush()
    assert not waiting.done()
    last = {"Nats-Batch-Id": "b7", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}
    await bus.send("s.a", b"", headers=last)
    await asyncio.wait_for(waiting, 30)
    found = await bus.scan("S", ["s.>"], start=1, stop=99)
    assert [m.data for m in found] == [b"", b"", b"1", b"2"]


@pytest.mark.asyncio
async def test_a_refused_batch_says_why(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await stream(bus)
    await bus.publish(NewMessage("s.a", b"", {"Nats-Msg-Id": "1"}))
    with pytest.raises(BusError, match="duplicate") as caught:
        await bus.commit([NewMessage("s.a", b""), NewMessage("s.a", b"", {"Nats-Msg-Id": "1"})])
    assert type(caught.value).__mro__[1] is BusError
    with pytest.raises(NotStored):
        await bus.commit([NewMessage("t.a", b""), NewMessage("t.a", b"")])


@pytest.mark.asyncio
async def test_a_commit_refused_by_a_full_stream_raises_stream_full_and_succeeds_once_there_is_room(
    server: Any, opened: Open
) -> None:
    bus = await opened(server.start().url)
    await stream(bus, max_messages=3)
    await bus.commit([NewMessage("s.a", b"")] * 2)
    with pytest.raises(StreamFull):
        await bus.commit([NewMessage("s.a", b"")] * 2)
    await bus.publish(NewMessage("s.a", b""))
    with pytest.raises(StreamFull):
        await bus.publish(NewMessage("s.a", b""))
    await bus.purge("S", "s.a", below=3)
    await bus.commit([NewMessage("s.a", b"")] * 2)


@pytest.mark.asyncio
async def test_a_subject_that_only_a_subscriber_hears_is_not_stored(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)

    async def deaf(message: object) -> None: ...

    await bus.subscribe("s.>", deaf)
    with pytest.raises(NotStored):
        await bus.publish(NewMessage("s.a", b""), timeout=0.2)


@pytest.mark.asyncio
async def test_a_write_that_is_not_permitted_says_so_at_once(server: Any, opened: Open) -> None:
    server.more = """
    accounts { A { jetstream: enabled, users: [
      { user: all, password: p },
      { user: few, password: p, permissions: { publish: { deny: ["s.no"] } } }
    ] } }
    """
    every = await opened(server.start().url, user="all", password="p")
    await stream(every)
    few = await opened(server.url, user="few", password="p")
    assert (await few.publish(NewMessage("s.yes", b""))).sequence == 1
    yes, no = NewMessage("s.yes", b""), NewMessage("s.no", b"")
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: few.publish(no, timeout=60),
        lambda: few.commit([yes, no], timeout=60),
        lambda: few.commit([yes, no, yes], timeout=60),
        lambda: few.request("s.no", b"", timeout=60),
    ]
    for write in writes:
        with pytest.raises(NotAllowed):
            await asyncio.wait_for(write(), 30)
    assert [m.subject for m in await every.scan("S", ["s.>"], start=1, stop=99)] == ["s.yes"]


def test_a_refusal_is_known_before_the_answer_that_the_server_gives_behind_it() -> None:
    """One read may hold both: the answer to the last of a batch would say "incomplete", which may have been stored."""
    seen: list[bytes] = []
    parser = WireParser({b"7": lambda subject, reply, data, head: seen.append(data)})
    refusal = b"-ERR 'Permissions Violation for Publish to \"s.no\"'"
    for line in parser.feed(b"MSG a 7 1\r\n1\r\n" + refusal + b"\r\nMSG a 7 1\r\n2\r\n"):
        seen.append(line)
    assert seen == [b"1", refusal, b"2"]


@pytest.mark.asyncio
async def test_the_reply_of_a_subscriber_is_not_taken_for_the_answer(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await stream(bus)

    async def eager(message: Message) -> None:
        if message.reply:
            await bus.send(message.reply, b"thank you", headers={"from": "me"})

    await bus.subscribe("s.>", eager)
    for n in range(50):
        assert (await bus.publish(NewMessage("s.a", b""))).sequence == n * 3 + 1
        assert await bus.commit([NewMessage("s.a", b""), NewMessage("s.b", b"")]) == n * 3 + 3


@asynccontextmanager
async def new_leader(behind: int, deciding: int = -1) -> AsyncIterator[str]:
    """URL of a server of a cluster that has no stream for the first `behind` questions for one. It answers no write; but where
    `deciding` says so, it tells the first ones that one with their id is being decided, and stores the next.
    """
    asked, ended = 0, asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked, deciding
        inboxes: dict[str, str] = {}

        def answer(reply: str, said: object) -> None:
            text = json.dumps(said)
            writer.write(f"MSG {reply} {inboxes[reply.rpartition('.')[0]]} {len(text)}\r\n{text}\r\n".encode())

        greeting = {"version": "2.15.1", "headers": True, "max_payload": 1 << 20, "jetstream": True, "cluster": "tests"}
        writer.write(f"INFO {json.dumps(greeting)}\r\n".encode())
        while line := await reader.readline():
            match line.decode().split():
                case ["PING"]:
                    writer.write(b"PONG\r\n")
                case ["SUB", subject, *_, sid]:
                    inboxes[subject.rpartition(".")[0]] = sid
                case ["PUB", "$JS.API.STREAM.NAMES", reply, _]:
                    asked += 1
                    answer(reply, {"streams": ["S"] if asked > behind else None})
                case ["HPUB", _, reply, _, size] if deciding >= 0:
                    await reader.readexactly(int(size) + 2)
                    error = {"code": 400, "err_code": 10158, "description": "duplicate message id is in process"}
                    answer(reply, {"error": error} if deciding else {"stream": "S", "seq": 7})
                    deciding -= 1
        writer.close()
        ended.set()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.wait_for(ended.wait(), 30)
    server.close()
    await server.wait_closed()


@pytest.mark.asyncio
@pytest.mark.parametrize(("behind", "error"), [(0, Unsettled), (1, Unsettled), (99, NotStored)])
async def test_that_no_stream_captures_a_subject_is_said_only_when_a_cluster_says_so_twice(
    behind: int, error: type[BusError]
) -> None:
    """A server that has just become the leader answers before it knows all streams."""
    async with new_leader(behind) as url:
        bus = await connect(url)
        try:
            with pytest.raises(error) as caught:
                await bus.publish(NewMessage("s.a", b""), timeout=0.4)
            assert type(caught.value) is error
            assert await bus.stream_of("s.a") == (None if behind == 99 else "S")
        finally:
            await bus.close()


@pytest.mark.asyncio
async def test_a_write_whose_id_is_being_decided_is_asked_again_until_that_is_known() -> None:
    """So a cluster answers who sends a message again, whose first answer was lost."""
    draft = NewMessage("s.a", b"", {"Nats-Msg-Id": "one"})
    async with new_leader(0, deciding=3) as url:
        bus = await connect(url)
        assert (await bus.publish(draft)).sequence == 7
        await bus.close()
    async with new_leader(0, deciding=10**9) as url:
        bus = await connect(url)
        with pytest.raises(Unsettled):
            await bus.publish(draft, timeout=0.4)
        await bus.close()


@pytest.mark.asyncio
async def test_a_batch_of_which_the_server_has_lost_a_part_is_unsettled(server: Any, opened: Open) -> None:
    """So it is when its disk is full; here its first message never came."""
    url = server.start().url
    await stream(await opened(url))
    plain = await nats.connect(url)
    last = {"Nats-Batch-Id": "lost", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}
    answer = json.loads((await plain.request("s.a", b"", headers=last)).data)
    await plain.close()
    error = refused(answer["error"], "commit")
    assert (answer["error"]["err_code"], type(error)) == (10176, Unsettled)


@pytest.mark.asyncio
async def test_what_a_server_without_room_has_stored_of_a_batch_still_says_that_it_is_of_one(server: Any, opened: Open) -> None:
    server.jetstream = f'jetstream {{ store_dir: "{server.folder / "js"}", max_file: 1000000 }}'
    bus = await opened(server.start().url)
    await stream(bus)
    with pytest.raises(Unsettled):
        await bus.commit([NewMessage("s.a", bytes(40_000))] * 40, timeout=1)
    torn = await bus.scan("S", ["s.>"], start=1, stop=99)
    assert 0 < len(torn) < 40
    assert all(m.in_batch for m in torn)
