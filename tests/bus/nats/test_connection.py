"""The connection: how it refuses, ends and comes back, and what of nats-py it leans on."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import nats.aio.client
import nats.errors
import pytest
from waiting import until

import dspex.bus.nats
from dspex.bus.errors import BusError, ConfigError, NotAllowed, NotStored, Saturated, Unreachable, UnsupportedServer
from dspex.bus.message import Message
from dspex.bus.nats import NatsBus, connect
from dspex.bus.nats.failures import _CLASSES
from dspex.bus.port import BusEvents, Delivery, NewMessage, StreamConfig

Open = Callable[..., Awaitable[NatsBus]]
ACCOUNTS = """
accounts {
  $SYS { users: [ { user: sys, password: sys } ] }
  A { jetstream: enabled, users: [
    { user: all, password: p },
    { user: few, password: p, permissions: { subscribe: { deny: ["s.no"] } } }
  ] }
}
"""


# -- connecting ------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_no_server_is_unreachable(unused_tcp_port: int) -> None:
    with pytest.raises(Unreachable, match=f"127.0.0.1:{unused_tcp_port}"):
        await asyncio.wait_for(connect(f"nats://127.0.0.1:{unused_tcp_port}"), 30)


@pytest.mark.asyncio
async def test_a_wrong_password_is_not_allowed_and_not_shown(server: Any, opened: Open) -> None:
    server.more = ACCOUNTS
    server.start()
    with pytest.raises(NotAllowed, match="Authorization Violation"):
        await connect(server.url, user="all", password="wrong")
    with pytest.raises(NotAllowed) as caught:
        await connect(f"nats://all:secret@127.0.0.1:{server.port}")
    assert "secret" not in str(caught.value)
    assert (await opened(f"nats://all:p@127.0.0.1:{server.port}")).connected


@pytest.mark.asyncio
async def test_a_server_without_jetstream_is_refused_with_the_fix(server: Any) -> None:
    server.jetstream = ""
    with pytest.raises(BusError) as caught:
        await connect(server.start().url)
    assert "-js" in caught.value.fix


@pytest.mark.asyncio
async def test_an_account_without_jetstream_is_refused_with_the_fix(server: Any, opened: Open) -> None:
    server.more = "accounts { B { users: [ { user: b, password: p } ] } }"
    bus = await opened(server.start().url, user="b", password="p")
    with pytest.raises(BusError) as caught:
        await bus.stream("S")
    assert "JetStream" in caught.value.fix


@asynccontextmanager
async def stand_in(greeting: bytes) -> AsyncIterator[str]:
    """URL of a server that says `greeting`, answers one PING, and then nothing more."""
    gone = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"PING\r\n")
            writer.write(b"PONG\r\n")
            await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.wait_for(gone.wait(), 30)
    server.close()
    await server.wait_closed()


@pytest.mark.asyncio
async def test_a_server_that_is_too_old_is_refused() -> None:
    greeting = b'INFO {"version":"2.11.9","headers":true,"max_payload":1048576,"jetstream":true}\r\n'
    async with stand_in(greeting) as url:
        with pytest.raises(UnsupportedServer, match=re.escape("2.11.9")):
            await connect(url)


@pytest.mark.asyncio
async def test_a_server_that_says_nothing_is_unreachable_after_the_timeout() -> None:
    async with stand_in(b"") as url:
        with pytest.raises(Unreachable):
            await asyncio.wait_for(connect(url, timeout=0.2), 30)


@pytest.mark.asyncio
@pytest.mark.parametrize("url", ["", "http://x", "nats://", "nats://x:port", "ws://x:80"])
async def test_an_invalid_server_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError):
        await connect(url)


@pytest.mark.asyncio
async def test_a_missing_credentials_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no credentials file"):
        await connect("nats://127.0.0.1", creds=str(tmp_path / "none.creds"))


@pytest.mark.asyncio
async def test_the_first_server_that_answers_is_taken(server: Any, opened: Open, unused_tcp_port: int) -> None:
    for _ in range(4):  # the order is random
        assert (await opened(f"nats://127.0.0.1:{unused_tcp_port}, {server.start().url}")).connected
        server.kill()


# -- ending and coming back ------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_subscriptions_and_requests_survive_a_killed_server(server: Any, opened: Open) -> None:
    states: list[str] = []
    bus = await opened(server.start().url, events=BusEvents(state=lambda state, why: states.append(state)))

    async def echo(message: Message) -> None:
        await bus.send(message.reply, message.data, headers=message.headers)

    await bus.subscribe("echo", echo, queue="q")
    for n in range(3):
        answer = await bus.request("echo", b"%d" % n, headers={"n": " x "})
        assert (answer.data, dict(answer.headers)) == (b"%d" % n, {"n": " x "})
        asking = asyncio.create_task(bus.request("nobody.but.a.killed.server", b"", timeout=60))
        server.kill()
        with pytest.raises((Unreachable, Saturated)):
            await asyncio.wait_for(asking, 30)
        server.start()
        await until(lambda: bus.connected)
    assert states == ["connected", *["disconnected", "connected"] * 3]


@pytest.mark.asyncio
async def test_a_connection_that_the_server_ends_for_good_comes_back(server: Any, opened: Open) -> None:
    states: list[str] = []
    bus = await opened(server.start().url, events=BusEvents(state=lambda state, why: states.append(f"{state} {why}")))
    got: list[Message] = []

    async def keep(message: Message) -> None:
        got.append(message)

    await bus.subscribe("a.*", keep)
    bus._connection.put(b"PUB a 3000000\r\n")  # nats-py never reconnects after "Maximum Payload Violation"
    await until(lambda: len(states) == 3)
    assert "Maximum Payload Violation" in states[1]
    await bus.send("a.b", b"1", reply="r")
    await until(lambda: len(got) == 1)
    assert (got[0].subject, got[0].data, got[0].reply) == ("a.b", b"1", "r")


@pytest.mark.asyncio
async def test_after_a_change_of_password_calls_are_not_allowed_until_it_is_right_again(server: Any, opened: Open) -> None:
    server.more = ACCOUNTS
    bus = await opened(server.start().url, user="all", password="p")
    server.kill()
    server.more = ACCOUNTS.replace("password: p", "password: q")
    server.start()

    async def refused() -> bool:
        try:
            await bus.stream("S")
        except NotAllowed:
            return True
        except Unreachable:
            return False
        return False

    await until(refused)
    server.kill()
    server.more = ACCOUNTS
    server.start()
    await until(lambda: bus.connected)
    assert await bus.stream("S") is None


@pytest.mark.asyncio
async def test_closing_does_not_wait_for_a_frozen_server(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    server.freeze()
    writing = asyncio.create_task(bus.commit([NewMessage("s.a", bytes(1 << 19))] * 40, timeout=60))  # fills every buffer
    await asyncio.sleep(0)
    await asyncio.wait_for(bus.close(), 30)
    with pytest.raises(BusError):
        await writing


@pytest.mark.asyncio
async def test_a_server_that_answers_late_keeps_its_connection(server: Any, opened: Open) -> None:
    states: list[str] = []
    bus = await opened(server.start().url, events=BusEvents(state=lambda state, why: states.append(state)))
    server.freeze()

    async def nothing(message: Message) -> None: ...

    with pytest.raises(Unreachable):
        await bus._connection.flush(0.1)
    with pytest.raises(Unreachable):
        await bus.request("a", b"", timeout=0.1)
    server.thaw()
    await bus.subscribe("a", nothing)
    assert await bus.stream("S") is None
    assert states == ["connected"]


@pytest.mark.asyncio
async def test_messages_sent_before_closing_arrive(server: Any, opened: Open) -> None:
    bus, other = await opened(server.start().url), await opened(server.url)
    got: list[bytes] = []

    async def keep(message: Message) -> None:
        got.append(message.data)

    await other.subscribe("a", keep)
    for n in range(20):
        await bus.send("a", b"%d" % n * 500_000)  # more than the socket takes at once
    await bus.close()
    await until(lambda: len(got) == 20)
    assert got == [b"%d" % n * 500_000 for n in range(20)]


# -- subscriptions ---------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_a_subscription_that_is_not_permitted_says_so(server: Any, opened: Open) -> None:
    server.more = ACCOUNTS
    bus = await opened(server.start().url, user="few", password="p")

    async def nothing(message: Message) -> None: ...

    await bus.subscribe("s.yes", nothing)
    with pytest.raises(NotAllowed, match=re.escape("s.no")):
        await bus.subscribe("s.no", nothing)


@pytest.mark.asyncio
async def test_a_handler_that_raises_is_reported_and_the_next_message_comes(server: Any, opened: Open) -> None:
    errors: list[str] = []
    bus = await opened(server.start().url, events=BusEvents(error=errors.append))
    got: list[bytes] = []

    async def fragile(message: Message) -> None:
        if message.data == b"bad":
            raise ValueError("no good")
        got.append(message.data)

    await bus.subscribe("a", fragile)
    for data in (b"1", b"bad", b"2"):
        await bus.send("a", data)
    await until(lambda: len(got) == 2)
    assert got == [b"1", b"2"]
    assert "no good" in errors[0]


# -- work ------------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
async def test_work_goes_on_when_the_server_is_killed(server: Any, opened: Open) -> None:
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    await bus.add_consumer("S", "s.a", name="w", ack_wait=1)
    queue = await bus.work("S", name="w", free=lambda: 5)
    assert queue is not None
    done: set[bytes] = set()
    for start in (0, 20, 40):
        await bus.commit([NewMessage("s.a", b"%d" % n) for n in range(start, start + 20)])
        while len(done) < start + 10:
            done |= await settle(await asyncio.wait_for(queue.next(), 30))
        server.kill()
        server.start()
        while len(done) < start + 20:
            done |= await settle(await asyncio.wait_for(queue.next(), 30))
        await until(lambda: bus.connected)
    assert done == {b"%d" % n for n in range(60)}


async def settle(delivery: Delivery) -> set[bytes]:
    try:
        await delivery.ack()
    except BusError:
        return set()  # it comes again
    return {delivery.message.data}


@pytest.mark.asyncio
async def test_who_waits_for_work_hears_that_its_consumer_was_deleted(
    server: Any, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspex.bus.nats.work.HEARTBEAT", 14.0)  # two missed ones would be too late
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    await bus.add_consumer("S", "s.a", name="w", ack_wait=30)
    queue = await bus.work("S", name="w", free=lambda: 1)
    assert queue is not None
    waiting = asyncio.create_task(queue.next())
    async with asyncio.timeout(30):  # a pull that meets the deletion on its way gets no answer at all
        while (await bus._connection.api("CONSUMER.INFO.S.w", None))["num_waiting"] == 0:
            await asyncio.sleep(0)
    await bus._connection.api("CONSUMER.DELETE.S.w", None)
    with pytest.raises(NotStored, match="gone"):
        await asyncio.wait_for(waiting, 25)
    assert await bus.begin_of_consumer("S", "w") is None


@pytest.mark.asyncio
async def test_idle_work_is_back_without_a_missed_heartbeat_after_the_server_was_killed(
    server: Any, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:  # N1
    monkeypatch.setattr("dspex.bus.nats.work.HEARTBEAT", 14.0)  # two missed ones would be too late
    bus = await opened(server.start().url)
    await bus.ensure_stream(StreamConfig("S", ["s.>"]))
    await bus.add_consumer("S", "s.a", name="w", ack_wait=30)
    queue = await bus.work("S", name="w", free=lambda: 1)
    assert queue is not None
    waiting = asyncio.create_task(queue.next())
    await bus._connection.flush()
    server.kill()
    await until(lambda: not bus.connected)
    server.start()
    await until(lambda: bus.connected)
    await bus.publish(NewMessage("s.a", b"1"))
    assert (await asyncio.wait_for(waiting, 25)).message.data == b"1"


# -- nats-py ---------------------------------------------------------------------------------------------------------
def test_every_error_of_nats_py_has_one_of_ours() -> None:
    known = {c for _, c in inspect.getmembers(nats.errors, inspect.isclass) if issubclass(c, nats.errors.Error)}
    assert known - {nats.errors.Error} == set(_CLASSES)


def test_nothing_of_nats_py_above_the_connection_is_used() -> None:
    # nats.js has errors of its own, which are mapped nowhere: then nothing may raise them.
    for file in Path(dspex.bus.nats.__file__).parent.glob("*.py"):
        for line in file.read_text().splitlines():
            if re.match(r"\s*(from|import) nats\b", line):
                assert re.fullmatch(r"from nats(\.aio\.client)? import (errors( as \w+)?|Client)", line), file


def test_the_private_members_of_nats_py_that_we_use_are_unchanged() -> None:
    client = nats.aio.client.Client
    for name, parameters in {
        "_select_next_server": ["self"],
        "_connect_to_server": ["self", "s"],
        "_read_loop": ["self"],
        "_process_op_err": ["self", "e"],
        "_process_info": ["self", "info", "initial_connection"],
        "_close": ["self", "status", "do_cbs"],
    }.items():
        method = getattr(client, name)
        assert inspect.iscoroutinefunction(method), name
        assert list(inspect.signature(method).parameters) == parameters, name
    fresh = vars(client())
    for name in (
        "_transport", "_pending", "_pending_data_size", "_server_pool", "_current_server", "_server_info", "_flush_queue",
        "_pongs", "_pings_outstanding"
    ):  # fmt: skip
        assert name in fresh
    assert "_io_writer" in vars(nats.aio.client.TcpTransport())
    source = inspect.getsource(client._process_connect_init)
    assert "self._read_loop()" in source
