"""What the in-memory bus has beyond the contract: exact virtual time, seeded faults, connections that are cut."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from dspex.bus.errors import DspexError, Fenced, Unreachable, Unsettled
from dspex.bus.memory.handles import MemoryWorkQueue
from dspex.bus.memory.server import Faults, MemoryBus, MemoryServer
from dspex.bus.memory.virtual import VirtualLoop
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, NewMessage, StreamConfig
from dspex.bus.subjects import MESSAGE_ID


async def opened(server: MemoryServer, **options: Any) -> MemoryBus:
    """A connection, and the stream S on s.>"""
    bus = server.connect()
    await bus.ensure_stream(StreamConfig("S", ["s.>"], **options))
    return bus


async def work(bus: MemoryBus, ack_wait: float) -> MemoryWorkQueue:
    await bus.add_consumer("S", "s.>", name="w", ack_wait=ack_wait)
    queue = await bus.work("S", name="w", free=lambda: 1)
    assert queue is not None
    return queue


async def stored(server: MemoryServer) -> list[bytes]:
    return [m.data for m in server.streams["S"].messages.values()]


# -- time ------------------------------------------------------------------------------------------------------------
def test_stored_time_is_epoch_plus_the_loops_clock(loop: VirtualLoop) -> None:
    async def main() -> float:
        bus = await opened(MemoryServer(epoch=1000.0))
        loop.call_later(2.5, asyncio.Event().set)
        await asyncio.sleep(2.5)
        await bus.publish(NewMessage("s.a", b""))
        message = await bus.get("S", 1)
        assert message is not None
        return message.time

    assert loop.run(main(), advance=True) == 1002.5


def test_work_comes_again_exactly_after_ack_wait_and_nak_delay(loop: VirtualLoop) -> None:
    seen: list[tuple[float, int]] = []

    async def main() -> None:
        bus = await opened(MemoryServer())
        await bus.publish(NewMessage("s.a", b""))
        queue = await work(bus, 15)
        for _ in range(3):
            delivery = await queue.next()
            seen.append((loop.time(), delivery.delivered))
        await delivery.nak(delay=2.5)
        delivery = await queue.next()
        seen.append((loop.time(), delivery.delivered))
        await delivery.ack()
        await queue.next()

    task = loop.create_task(main())
    loop.advance(3600)
    assert seen == [(0, 1), (15, 2), (30, 3), (32.5, 4)]
    assert not task.done()


def test_an_ack_after_ack_wait_settles_work_before_it_is_delivered_again(loop: VirtualLoop) -> None:
    async def main() -> bytes:
        bus = await opened(MemoryServer())
        await bus.commit([NewMessage("s.a", b"late"), NewMessage("s.a", b"next")])
        queue = await work(bus, 15)
        late = await queue.next()
        await asyncio.sleep(20)
        await late.ack()
        return (await queue.next()).message.data

    assert loop.run(main(), advance=True) == b"next"


def test_a_message_id_is_forgotten_after_the_duplicate_window(loop: VirtualLoop) -> None:
    async def main() -> list[bool]:
        bus = await opened(MemoryServer(), duplicate_window=120)
        duplicate: list[bool] = []
        for pause in (0, 119, 2, 0):
            await asyncio.sleep(pause)
            duplicate.append((await bus.publish(NewMessage("s.a", b"", {MESSAGE_ID: "x"}))).duplicate)
        return duplicate

    assert loop.run(main(), advance=True) == [False, True, False, True]


# -- a cut connection ------------------------------------------------------------------------------------------------
def test_the_server_outlives_its_connections(loop: VirtualLoop) -> None:
    async def main() -> None:
        server = MemoryServer()
        one = await opened(server)
        await one.publish(NewMessage("s.a", b"kept"))
        await (await one.bucket("B")).put("k", b"v")
        name = await (await one.objects("O")).put(b"o")
        await one.close()
        two = server.connect()
        assert (await two.scan("S", ["s.>"], start=1, stop=9))[0].data == b"kept"
        assert await (await two.bucket("B")).get("k") is not None
        assert await (await two.objects("O")).get(name) == b"o"

    loop.run(main())


def test_every_wait_on_a_cut_connection_ends_in_an_error(loop: VirtualLoop) -> None:
    async def silent(message: Message) -> None:
        return

    async def main() -> None:
        server = MemoryServer()
        bus, other = await opened(server), server.connect()
        await other.subscribe("nobody.answers", silent)
        reader = await bus.reader("S", ["s.>"], after=0, name="r")
        queue = await work(bus, 15)
        waiting = asyncio.gather(
            reader.read(1), queue.next(), bus.request("nobody.answers", b"", timeout=60), return_exceptions=True
        )
        for _ in range(10):
            await other.stream("S")
        await bus.close()
        assert [type(r) for r in await waiting] == [Unreachable] * 3

    loop.run(main())
    assert loop.time() == 0


def test_a_connection_reports_when_it_opens_and_closes(loop: VirtualLoop) -> None:
    states: list[str] = []

    async def main() -> None:
        bus = MemoryServer().connect(events=BusEvents(state=lambda state, why: states.append(state)))
        await bus.close()
        await bus.close()

    loop.run(main())
    assert states == ["connected", "closed"]


def test_a_core_subscriber_also_sees_messages_that_the_stream_refuses_or_knows_already(loop: VirtualLoop) -> None:
    got: list[bytes] = []

    async def handle(message: Message) -> None:
        got.append(message.data)

    async def main() -> None:
        bus = await opened(MemoryServer())
        await bus.subscribe("s.a", handle)
        for _ in range(2):
            await bus.publish(NewMessage("s.a", b"repeat", {MESSAGE_ID: "x"}))
        with pytest.raises(Fenced):
            await bus.commit([NewMessage("s.a", b"refused"), NewMessage("s.b", b"", expect=9)])

    loop.run(main())
    loop.settle()
    assert got == [b"repeat", b"repeat", b"refused"]


def test_a_handler_that_fails_is_reported_and_the_next_message_handled(loop: VirtualLoop) -> None:
    errors: list[str] = []
    got: list[bytes] = []

    async def handle(message: Message) -> None:
        if message.data == b"bad":
            raise RuntimeError("no good")
        got.append(message.data)

    async def main() -> None:
        bus = MemoryServer().connect(events=BusEvents(error=errors.append))
        await bus.subscribe("a", handle)
        for data in (b"1", b"bad", b"2"):
            await bus.send("a", data)

    loop.run(main())
    loop.settle()
    assert got == [b"1", b"2"]
    assert errors == ["handler of a: RuntimeError: no good"]


def test_a_handler_may_close_its_own_subscription_and_finish(loop: VirtualLoop) -> None:
    finished: list[bytes] = []

    async def main() -> None:
        bus = MemoryServer().connect()

        async def once(message: Message) -> None:
            await subscription.close()
            await asyncio.sleep(0)
            finished.append(message.data)

        subscription = await bus.subscribe("a", once)
        await bus.send("a", b"1")
        await bus.send("a", b"2")

    loop.run(main())
    loop.settle()
    assert finished == [b"1"]


# -- chance and faults -----------------------------------------------------------------------------------------------
def group_choices(seed: int) -> list[int]:
    got: list[int] = []

    async def main() -> None:
        bus = MemoryServer(seed=seed).connect()
        for n in range(3):

            async def handle(message: Message, n: int = n) -> None:
                got.append(n)

            await bus.subscribe("a", handle, queue="q")
        for _ in range(50):
            await bus.send("a", b"")

    loop = VirtualLoop()
    loop.run(main())
    loop.settle()
    loop.close()
    return got


def test_the_seed_decides_which_member_of_a_queue_group_gets_a_message() -> None:
    assert group_choices(1) == group_choices(1)
    assert group_choices(1) != group_choices(2)
    assert set(group_choices(1)) == {0, 1, 2}


def test_a_write_on_a_connection_that_is_cut_first_stores_nothing(loop: VirtualLoop) -> None:
    async def main() -> None:
        server = MemoryServer()
        bus = await opened(server)
        server.luck.faults = Faults(disconnect=0.5)
        done = 0
        for n in range(100):
            try:
                await bus.publish(NewMessage("s.a", b"%d" % n))
                done += 1
            except Unreachable:
                pass
        assert 20 < done < 80
        assert len(await stored(server)) == done

    loop.run(main())


def test_an_unsettled_write_has_landed_or_lands_late_or_never(loop: VirtualLoop) -> None:
    fates: Counter[str] = Counter()

    async def main() -> None:
        server = MemoryServer()
        bus = await opened(server)
        server.luck.faults = Faults(unsettled=1.0)
        for n in range(60):
            with pytest.raises(Unsettled):
                await bus.commit([NewMessage("s.a", b"%d" % n), NewMessage("s.b", b"%d" % n)])
            before = (await stored(server)).count(b"%d" % n)
            await asyncio.sleep(10)
            fates[f"{before} then {(await stored(server)).count(b'%d' % n)}"] += 1

    loop.run(main(), advance=True)
    assert set(fates) == {"2 then 2", "0 then 2", "0 then 0"}
    assert min(fates.values()) > 10


def test_a_claim_keeps_a_late_commit_from_landing(loop: VirtualLoop) -> None:
    """The reason why a claim, not a read, ends the doubt: behind it the late commit cannot land."""

    async def main() -> None:
        server = MemoryServer(seed=3)
        bus = await opened(server)
        for n in range(50):
            log = f"s.log.{n}"
            server.luck.faults = Faults(unsettled=1.0)
            with pytest.raises(Unsettled):
                await bus.commit([NewMessage("s.out", b"%d" % n), NewMessage(log, b"commit", expect=0)])
            server.luck.faults = Faults()
            last = await bus.last("S", log)
            try:
                await bus.publish(NewMessage(log, b"claim", expect=last.sequence if last else 0))
            except Fenced:  # it landed between the read and the claim: look again
                last = await bus.last("S", log)
                assert last is not None
                await bus.publish(NewMessage(log, b"claim", expect=last.sequence))
            seen = len(await bus.scan("S", [log], start=1, stop=1 << 30))
            await asyncio.sleep(10)
            assert len(await bus.scan("S", [log], start=1, stop=1 << 30)) == seen

    loop.run(main(), advance=True)


def test_acknowledged_work_may_come_again_when_its_ack_is_lost(loop: VirtualLoop) -> None:
    seen: Counter[bytes] = Counter()

    async def main() -> None:
        server = MemoryServer(faults=Faults(duplicate=0.3))
        bus = await opened(server)
        await bus.commit([NewMessage("s.a", b"%d" % n) for n in range(100)])
        queue = await work(bus, 15)
        while True:
            delivery = await queue.next()
            seen[delivery.message.data] += 1
            assert delivery.delivered >= 1
            await delivery.ack()

    task = loop.create_task(main())
    loop.advance(600)
    assert not task.done()
    assert len(seen) == 100
    assert 110 < seen.total() < 200


def test_delayed_readers_still_get_everything_in_order(loop: VirtualLoop) -> None:
    async def main() -> None:
        bus = await opened(MemoryServer(faults=Faults(delay=0.5)))
        reader = await bus.reader("S", ["s.>"], after=0, name="r")
        got: list[Message] = []
        for n in range(10):
            await bus.commit([NewMessage("s.a", b"%d" % i) for i in range(10 * n, 10 * n + 10)])
            got += await reader.read(7)
        while len(got) < 100:
            got += await reader.read(7)
        assert [int(m.data) for m in got] == list(range(100))

    loop.run(main(), advance=True)
    assert loop.time() > 1


def chaos(seed: int) -> tuple[list[bytes], list[str]]:
    """Two publishers that repeat what they are not sure of, one worker; what is stored, and everything that happened."""
    trace: list[str] = []
    server = MemoryServer(seed=seed)
    loop = VirtualLoop()

    async def publisher(who: str) -> None:
        bus = server.connect()
        for n in range(20):
            draft = NewMessage("s.a", f"{who}{n}".encode(), {MESSAGE_ID: f"{who}{n}"})
            while True:
                try:
                    ack = await bus.publish(draft)
                except DspexError as e:
                    trace.append(f"{loop.time():.6f} {who}{n} {type(e).__name__}")
                else:
                    trace.append(f"{loop.time():.6f} {who}{n} {ack.sequence} {ack.duplicate}")
                    break

    async def worker() -> None:
        bus = server.connect()
        while True:
            try:
                queue = await work(bus, 5)
                while True:
                    delivery = await queue.next()
                    trace.append(f"{loop.time():.6f} got {delivery.message.sequence} {delivery.delivered}")
                    await delivery.ack()
            except Unreachable:
                trace.append(f"{loop.time():.6f} worker cut")

    def start(main: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return loop.create_task(main)

    loop.run(opened(server))
    server.luck.faults = Faults(duplicate=0.1, disconnect=0.1, delay=0.2, unsettled=0.2)
    tasks = [start(publisher("a")), start(publisher("b")), start(worker())]
    loop.advance(300)
    assert [t.done() for t in tasks] == [True, True, False]
    result = loop.run(stored(server))
    loop.close()
    return result, trace


@pytest.mark.parametrize("seed", range(5))
def test_a_run_with_faults_is_repeated_exactly_by_its_seed_and_stores_each_id_once(seed: int) -> None:
    first, trace = chaos(seed)
    assert Counter(first) == Counter(f"{who}{n}".encode() for who in "ab" for n in range(20))
    assert chaos(seed) == (first, trace)
    assert any("Unsettled" in line for line in trace)
    assert any("cut" in line for line in trace)
    assert {int(line.split()[2]) for line in trace if " got " in line} == set(range(1, 41))
