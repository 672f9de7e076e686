"""What is too large for a message: its payload is stored first, under its hash, and the message names it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_lab import APP, SOURCES, STREAM, Cut, Lab

from dspex.bus import subjects
from dspex.bus.codecs.json import json_bytes
from dspex.bus.errors import LMUnavailable, RetryLater, Unreachable
from dspex.bus.memory.handles import MemoryObjects
from dspex.bus.memory.server import MemoryBus
from dspex.bus.message import Message
from dspex.bus.port import BusEvents, NewMessage
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.new_leader import NEW, PAUSES
from dspex.engine.client import letters, watch
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.runtime.walk.compile import compile_stage
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
LARGE = "x" * 300_000
ABOVE = 1000


@pytest.fixture
def checked(lab: MakeLab) -> Iterator[Callable[..., Lab]]:
    """Labs of which the invariant of replay is checked at the end."""
    made: list[tuple[Lab, Topology]] = []

    def make(topology: Topology) -> Lab:
        made.append((lab(topology), topology))
        return made[-1][0]

    yield make
    for one, topology in made:
        one.advance(1)
        assert one.run(differences(one, topology)) == []


async def differences(one: Lab, topology: Topology) -> list[str]:
    (source,) = topology.graph.sources
    stage, bus = compile_stage(topology.graph, source, "s1"), one.client.bus
    replay = PartitionReplay(bus, APP, stage, SOURCES, 0, 1, payloads.most(bus))
    return [d.what async for d in replay.differences()]


def stored(one: Lab, subject: str, stream: str = STREAM) -> list[Message]:
    """The messages as they are stored, without their payloads."""

    async def go() -> list[Message]:
        info = await one.client.bus.stream(stream)
        return await one.client.bus.scan(stream, [subject], start=1, stop=info.last) if info else []

    found: list[Message] = one.run(go())
    return found


def forget(one: Lab, subject: str, stream: str = STREAM) -> None:
    """Lose the payloads of a subject."""
    for message in stored(one, subject, stream):
        one.server.objects[subjects.objects(APP)].pop(message.headers.get(subjects.CLAIM_CHECK, ""), None)


def through() -> Topology:
    topology = Topology("through")
    topology.source("in").map(lambda d: {"text": d["text"] + "!"}, name="shout").sink("out")
    return topology


def asking(**options: Any) -> Topology:
    topology = Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", **options).sink("out")
    return topology


def test_a_large_event_and_its_output_are_named_by_their_hash_and_read_as_any_other(checked: Callable[..., Lab]) -> None:
    one = checked(through())
    one.start()
    one.publish("in", {"text": LARGE})
    one.publish("in", {"text": "small"})
    large, small = stored(one, "in", SOURCES)
    assert large.headers[subjects.CLAIM_CHECK] == hashlib.sha256(json_bytes({"text": LARGE})).hexdigest()
    assert (large.data, subjects.CLAIM_CHECK in small.headers) == (b"", False)
    (out, _) = stored(one, "out")
    assert (out.data, len(out.headers[subjects.CLAIM_CHECK])) == (b"", 64)
    assert [o["text"] for o in one.outputs("out")] == [LARGE + "!", "small!"]
    run = one.run(one.client.publish("in", {"text": LARGE}))
    one.run(run.wait("10s"))
    assert [e.data["text"] for e in one.run(run.outputs())] == [LARGE + "!"]


def test_a_watcher_gets_large_events_whole(lab: MakeLab) -> None:
    one = lab(through())
    one.start()
    one.publish("in", {"text": LARGE})

    assert one.run(anext(watch.events(one.client.bus, APP, "out", "all"))).data["text"] == LARGE + "!"


def test_any_client_may_publish_a_payload_that_it_stored_itself(checked: Callable[..., Lab]) -> None:
    one = checked(through())
    one.start()

    async def publish() -> None:
        name = await (await one.client.bus.objects(subjects.objects(APP))).put(b'{"text":"mine"}')
        await one.client.bus.publish(NewMessage("in", b"", {"Dspex-Claim-Check": name}))

    one.run(publish())
    one.advance(1)
    assert one.outputs("out") == [{"text": "mine!"}]


def test_the_setting_says_from_which_size_on_payloads_are_stored_apart(lab: MakeLab) -> None:
    one = lab(through())
    one.start(claim_check_above=ABOVE)
    one.publish("in", {"text": "x" * (ABOVE - 12)})  # with what is around it: 999 bytes, and 1000 with the "!"
    one.publish("in", {"text": "x" * (ABOVE - 11)})
    assert [subjects.CLAIM_CHECK in m.headers for m in stored(one, "out")] == [False, True]


def test_a_call_with_large_inputs_and_a_large_answer_runs_once(checked: Callable[..., Lab]) -> None:
    one = checked(asking())
    one.answers["ask"] = lambda inputs, work: {"answer": inputs["text"] + "y"}
    one.start()
    one.work()
    one.publish("in", {"text": LARGE})
    one.advance(1)
    assert [(o["text"], o["answer"]) for o in one.outputs("out")] == [(LARGE, LARGE + "y")]
    assert len(one.asked) == 1
    for subject in (subjects.work_pattern(APP, "lightweight"), subjects.record(APP, "*", "asking", "s1", 0)):
        (message,) = stored(one, subject)
        assert (message.data, subjects.CLAIM_CHECK in message.headers) == (b"", True)


def test_a_large_call_is_made_again_from_what_is_stored(checked: Callable[..., Lab]) -> None:
    one = checked(asking())

    def answer(inputs: Any, work: Any) -> Any:
        if work.try_number == 1:
            raise LMUnavailable("once more", retry_after=1.0)
        return {"answer": str(len(inputs["text"]))}

    one.answers["ask"] = answer
    one.start()
    one.work()
    one.publish("in", {"text": LARGE})
    one.kill()
    one.advance(100)
    one.start()
    one.advance(100)
    assert [o["answer"] for o in one.outputs("out")] == ["300000"]


@pytest.mark.parametrize("landed", [True, False])
def test_a_crash_between_payload_and_commit_loses_and_doubles_nothing(checked: Callable[..., Lab], landed: bool) -> None:
    one = checked(through())
    one.start(bus=Cut(one.server, 2, landed))  # commit 1 is the claim; the payload is stored before commit 2
    one.publish("in", {"text": LARGE})
    one.advance(1)
    assert len(one.server.objects[subjects.objects(APP)]) == 2
    assert len(stored(one, "out")) == landed
    one.kill()
    one.advance(100)
    one.start()
    one.advance(1)
    assert [o["text"] for o in one.outputs("out")] == [LARGE + "!"]


class Refusing(MemoryBus):
    """A connection over which no payload can be stored while `refuses`."""

    refuses = False

    async def objects(self, name: str, *, replicas: int = 1) -> MemoryObjects:
        bus, objects = self, await super().objects(name, replicas=replicas)

        class Refused(MemoryObjects):
            async def put(self, data: bytes) -> str:
                if bus.refuses:
                    raise Unreachable("the object store takes nothing")
                return await objects.put(data)

        return Refused(self, self.server.objects[name])


def test_while_payloads_are_refused_nothing_is_committed_and_nothing_lost(checked: Callable[..., Lab]) -> None:
    one = checked(through())
    bus = Refusing(one.server, BusEvents())
    one.start(bus=bus)
    bus.refuses = True
    one.publish("in", {"text": LARGE})
    one.publish("in", {"text": "small"})
    one.advance(10)
    assert one.outputs("out") == []
    bus.refuses = False
    one.advance(10)
    assert [o["text"] for o in one.outputs("out")] == [LARGE + "!", "small!"]


def test_an_event_whose_payload_is_gone_is_a_dead_letter_and_the_rest_goes_on(checked: Callable[..., Lab]) -> None:  # G6
    one = checked(through())
    one.start()
    one.kill()
    one.publish("in", {"text": LARGE})
    for name in ("0" * 64, "no hash", "../../etc/passwd"):
        one.store(NewMessage("in", b"", {subjects.CLAIM_CHECK: name}))
    one.publish("in", {"text": "small"})
    forget(one, "in", SOURCES)
    one.advance(100)
    one.start()
    one.advance(1)
    assert one.outputs("out") == [{"text": "small!"}]
    found = one.letters()
    assert [(d.node, d.code) for d in found] == [("in", "DX511")] * 4
    assert "is stored nowhere any more" in found[0].message
    assert one.run(letters.redrive(one.client.bus, APP, found[:1])) == 1
    one.advance(1)
    assert [d.code for d in one.letters()] == ["DX511"] * 4


def test_a_payload_that_was_changed_is_no_payload(checked: Callable[..., Lab]) -> None:
    one = checked(through())
    one.start()
    one.kill()
    one.publish("in", {"text": LARGE})
    objects = one.server.objects[subjects.objects(APP)]
    for name, (_, put) in list(objects.items()):
        objects[name] = b'{"text":"another"}', put
    one.advance(100)
    one.start()
    one.advance(1)
    assert one.outputs("out") == []
    assert [d.code for d in one.letters()] == ["DX511"]


@pytest.mark.parametrize("restored", [False, True])
def test_a_call_whose_request_lost_its_payload_is_a_dead_letter_at_once(checked: Callable[..., Lab], restored: bool) -> None:
    one = checked(asking(deadline="1h"))
    one.start()
    one.publish("in", {"text": LARGE})
    kept = dict(one.server.objects[subjects.objects(APP)])
    forget(one, subjects.work_pattern(APP, "lightweight"))
    one.advance(100)  # older than what may not have come to every server yet
    one.work()
    one.advance(1)
    assert [(d.node, d.code) for d in one.letters()] == [("ask", "DX509")]
    assert one.asked == []
    if restored:  # a replay gives what was given
        one.server.objects[subjects.objects(APP)].update(kept)


def test_a_call_whose_request_lost_its_payload_while_no_worker_ran_ends_at_its_deadline(checked: Callable[..., Lab]) -> None:
    one = checked(asking(deadline="20s", timeout="10s"))
    one.start()
    one.publish("in", {"text": LARGE})
    forget(one, subjects.work_pattern(APP, "lightweight"))
    one.advance(60)
    assert [(d.node, d.code) for d in one.letters()] == [("ask", "DX509")]


def test_a_large_event_that_asked_for_later_is_fetched_again(lab: MakeLab) -> None:
    tries: list[int] = []

    def patient(data: Any) -> Any:
        tries.append(len(data["text"]))
        if len(tries) in (1, 2):
            raise RetryLater(after=1.0)
        return data

    topology = Topology("patient")
    topology.source("in").map(patient, name="patient").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"text": LARGE})
    one.advance(5)
    assert len(one.outputs("out")) == 1
    assert tries == [len(LARGE)] * 3


@pytest.mark.parametrize("lost", [False, True])
def test_a_redriven_large_event_runs_from_its_payload_or_says_that_it_is_gone(lab: MakeLab, lost: bool) -> None:
    broken = [True]

    def shorten(data: Any) -> Any:
        if broken[0]:
            raise ValueError("broken")
        return {"size": len(data["text"])}

    topology = Topology("large")
    topology.source("in").map(shorten, name="shorten").sink("out")
    one = lab(topology)
    one.start()
    one.publish("in", {"text": LARGE})
    (letter,) = one.letters()
    assert letter.event.data == {"text": LARGE}
    (message,) = stored(one, subjects.dead_pattern(APP))
    assert (message.data, len(message.headers[subjects.CLAIM_CHECK])) == (b"", 64)
    one.kill()
    assert one.run(letters.redrive(one.client.bus, APP, [letter])) == 1
    broken[0] = False
    if lost:
        forget(one, subjects.edge(APP, "large", "s1", 0))
    one.advance(100)
    one.start()
    one.advance(1)
    assert one.outputs("out") == ([] if lost else [{"size": len(LARGE)}])
    assert [d.code for d in one.letters()] == (["DX511"] if lost else [])


async def new_leader(one: Lab) -> None:
    one.server.led_since = one.server.now


def made_up(one: Lab) -> None:
    """Store events whose payloads never were."""
    for n in range(8):
        one.store(NewMessage("in", b"", {subjects.CLAIM_CHECK: f"{n}" * 64}))


def test_a_payload_that_a_new_leader_does_not_have_yet_is_waited_for(checked: Callable[..., Lab]) -> None:
    one = checked(through())
    one.start()
    objects = one.server.objects[subjects.objects(APP)]
    one.kill()
    made_up(one)
    one.publish("in", {"text": LARGE})
    late = dict(objects)
    objects.clear()
    one.run(new_leader(one))
    one.start()
    one.advance(2)
    objects.update(late)
    one.advance(12)
    assert [o["text"] for o in one.outputs("out")] == [LARGE + "!"]
    assert [d.code for d in one.letters()] == ["DX511"] * 8


def test_made_up_payloads_hold_up_nobody(checked: Callable[..., Lab]) -> None:
    one = checked(through())
    one.start()
    made_up(one)
    one.publish("in", {"text": "a"})
    one.advance(0.1)
    assert [o["text"] for o in one.outputs("out")] == ["a!"]
    assert [d.code for d in one.letters()] == ["DX511"] * 8


def test_made_up_payloads_hold_up_the_others_only_for_as_long_as_a_leader_is_new(checked: Callable[..., Lab]) -> None:
    one = checked(through())
    one.start()
    one.run(new_leader(one))
    made_up(one)
    one.publish("in", {"text": "a"})
    one.advance(NEW + max(PAUSES))
    assert [o["text"] for o in one.outputs("out")] == ["a!"]


@pytest.mark.parametrize("restored", [False, True])
def test_a_call_whose_record_lost_its_payload_is_a_dead_letter_at_once_that_says_so(
    checked: Callable[..., Lab], restored: bool
) -> None:
    one = checked(asking(deadline="1h"))
    one.answers["ask"] = lambda inputs, request: {"answer": LARGE}
    one.start()
    one.publish("in", {"text": "a"})
    one.kill()
    one.work()
    one.advance(1)
    kept = dict(one.server.objects[subjects.objects(APP)])
    forget(one, subjects.record(APP, "*", "asking", "s1", 0))
    one.advance(100)  # older than what may not have come to every server yet
    one.start()
    one.advance(1)
    assert [(d.node, d.code) for d in one.letters()] == [("ask", "DX511")]
    if restored:  # a replay gives what was given
        one.server.objects[subjects.objects(APP)].update(kept)
