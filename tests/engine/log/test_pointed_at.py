"""Events of a source that something points at instead of holding them: housekeeping leaves them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_lab import APP, Lab

from dspex.bus import subjects
from dspex.bus.port import NewMessage
from dspex.engine.log import commit_log, housekeeping
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
KEEP = 30.0  # seconds of retention
LATER = 130.0  # seconds after which two sweeps have gone over what is past it
LARGE = b'{"text": "%s"}' % (b"x" * 400_000)


@pytest.fixture(autouse=True)
def _frequent_snapshots_and_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EVERY", 60.0)
    monkeypatch.setattr(commit_log, "LEAST", 4_000)  # bytes of entries until a snapshot: nothing goes before two of them


def stored_again(one: Lab) -> str:
    """The payload is put, as by who restores it; its name."""

    async def put() -> str:
        objects = await one.client.bus.objects(subjects.objects(APP))
        return await objects.put(LARGE)

    found: str = one.run(put())
    return found


def without_its_payload(lab: MakeLab) -> Lab:
    """A lab with the dead letter of an event whose payload was lost, and many events that were processed since."""
    topology = Topology("pointing", retention="30s")
    topology.source("in").predict("text -> answer", name="ask", deadline="30d").sink("out")
    one = lab(topology)
    one.start(records=KEEP, most_open_calls=2)
    one.work()
    name = stored_again(one)
    one.server.objects[subjects.objects(APP)].pop(name)
    one.publish("in", {"text": "before"})
    one.store(NewMessage("in", b"", {subjects.CLAIM_CHECK: name}))
    for n in range(50):
        one.publish("in", {"text": str(n)})
    one.advance(20)  # what was put a moment ago may not be everywhere yet, so it is looked for again
    assert [letter.code for letter in one.letters()] == ["DX511"]
    return one


def is_swept(one: Lab) -> bool:
    """Whether housekeeping has removed what lies before the event whose payload was lost."""
    return all(b"before" not in m.data for m in one.messages("in"))


def sizes(one: Lab) -> list[int]:
    return [len(o["text"]) for o in one.outputs("out") if len(o["text"]) > 10]


def test_the_event_of_a_dead_letter_that_lost_its_payload_runs_once_that_is_restored_however_late(lab: MakeLab) -> None:
    one = without_its_payload(lab)
    one.advance(LATER)
    assert is_swept(one)
    stored_again(one)
    one.run(one.client.redrive(one.letters()))
    one.advance(1)
    assert (sizes(one), one.letters()) == ([400_000], [])


def test_an_event_that_is_redriven_while_its_partition_waits_for_workers_is_there_when_its_turn_comes(lab: MakeLab) -> None:
    one = without_its_payload(lab)
    one.stop_workers()
    for n in range(2):
        one.publish("in", {"text": str(n)})
    stored_again(one)
    one.run(one.client.redrive(one.letters()))
    one.advance(LATER)
    assert is_swept(one)
    one.kill()
    one.start()
    one.work()
    one.advance(1)
    assert (sizes(one), one.letters()) == ([400_000], [])
