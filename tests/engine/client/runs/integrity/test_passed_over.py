"""What is damaged or missing is named by a replay of many runs, or of a topology, which goes on behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from cli_bench import Project
from engine_lab import APP, STREAM, Lab

from dspex.bus import nats, subjects
from dspex.bus.errors import RecordingIncomplete
from dspex.bus.message import Message
from dspex.engine.client.runs.diff import Replay
from dspex.engine.client.runs.then.recorded import taken_by
from dspex.engine.replay.topology import Replayed, replayed_run
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
TEXTS = ["a", "b", "c", "d"]


def counting(more: int = 0) -> Topology:
    """What comes of an event depends on all before it."""
    topology = Topology("counting")
    asked = topology.source("in").predict("text -> label", name="ask")
    once = asked.key_by("kind", name="by").dedupe("text", within="1d", name="once")
    once.map(lambda d: {**d, "more": more}, name="add").sink("out")
    return topology


@pytest.fixture
def ran(lab: MakeLab) -> tuple[Lab, list[str]]:
    one = lab(counting())
    one.answers["ask"] = lambda inputs, work: {"label": str(inputs["text"]).upper()}
    one.start()
    one.work()
    runs = list[str]()
    for text in [*TEXTS, "a"]:  # the last one is dropped: `once` knows it
        runs.append(one.publish("in", {"text": text, "kind": "k"}))
        one.advance(1)
    return one, runs


def change(one: Lab, m: Message, was: bytes, now: bytes) -> None:
    assert was in m.data
    stream = next(kept for kept in one.server.streams.values() if kept.messages.get(m.sequence) == m)
    stream.messages[m.sequence] = m._replace(data=m.data.replace(was, now))


def whole(one: Lab, more: int = 0) -> Replay:
    found: Replay = one.run(one.client.replay(topology=counting(more)))
    return found


def several(one: Lab, runs: list[str], *, goes_on: bool = True) -> Replayed:
    async def go() -> Replayed:
        past = [(await one.client.run(run).history())[0] for run in runs]
        applied = (await one.client.manifests())["counting"]
        taken = taken_by(past)["counting"]
        return await replayed_run(one.client.bus, APP, counting().graph, applied, {}, taken, {*runs}, goes_on=goes_on)

    found: Replayed = one.run(go())
    return found


def spoil(one: Lab, what: str) -> None:
    """What the second run has there."""
    if what == "event":
        change(one, one.messages("in")[1], b'"b"', b'"x"')
    elif what == "record":
        change(one, one.messages(subjects.record(APP, "*", "*", "*", "*"))[1], b"B", b"X")
    else:
        change(one, one.messages(subjects.edge(APP, "*", "*", "*"))[1], b"B", b"X")


@pytest.mark.parametrize("what", ["event", "record"])
def test_what_is_damaged_is_named_and_what_follows_is_replayed_with_the_state_that_the_log_tells(
    ran: tuple[Lab, list[str]], what: str
) -> None:
    one, runs = ran
    assert (whole(one).same, several(one, runs).same) == (True, True)
    spoil(one, what)
    found, chosen = whole(one), several(one, runs)
    assert ([*found.incomplete], found.diverged, found.same) == ([runs[1]], None, False)
    assert f"not replayed {runs[1]}: " in str(found)
    assert ([*chosen.incomplete], chosen.diverged, chosen.same) == ([runs[1]], [], False)
    other = whole(one, more=1)
    assert [*other.incomplete] == [runs[1]]
    assert other.diverged is not None
    with pytest.raises(RecordingIncomplete, match=runs[1]):
        several(one, runs, goes_on=False)


def test_a_frame_that_is_damaged_is_named_by_where_it_was_taken(ran: tuple[Lab, list[str]]) -> None:
    one, _ = ran
    spoil(one, "frame")
    found = whole(one)
    assert (len(found.incomplete), found.diverged, found.same) == (1, None, False)
    assert next(iter(found.incomplete)).startswith("s2.")


def test_of_a_log_that_is_damaged_the_rest_is_named_and_other_partitions_are_replayed(ran: tuple[Lab, list[str]]) -> None:
    one, _ = ran
    entries = [m for m in one.messages(subjects.log(APP, "counting", "s2", "*")) if b"taken" in m.data]
    stored = one.server.streams[STREAM].messages
    data = bytearray(entries[1].data)
    data[len(data) // 2] ^= 1
    stored[entries[1].sequence] = entries[1]._replace(data=bytes(data))
    found = whole(one)
    assert (len(found.incomplete), found.diverged, found.same) == (1, None, False)
    assert found.served == len(TEXTS) + 1, "the calls of the stage before are read back all the same"


@pytest.mark.long
def test_the_command_names_each_run_that_it_cannot_replay_and_does_the_others(native: Project) -> None:
    texts = ["abc", "large" * 200_000, "abcd"]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    runs = [one["run"] for one in native.publish("-", "--session", "ann", stdin=rows).objects()]

    async def lose() -> None:
        bus = await nats.connect(native.env["NATS_URL"])
        objects = await bus.objects(subjects.objects(native.u))
        for name, put in (await objects.listing()).items():
            await objects.remove(name, put)
        await bus.close()

    asyncio.run(lose())
    for what in (["--session", "ann"], ["--topology", "native"]):
        found = native.here("--json", "replay", *what)
        (said,) = found.objects()
        assert (found.code, found.error()["code"], said["same"]) == (6, "DX802", False), found
        assert [one["run"] for one in said["incomplete"]] == [runs[1]]
        text = native.here("replay", *what)
        assert f"not replayed {runs[1]}: the body of source " in text.out
        assert f"- not replayed {runs[1]}: " in native.here("replay", *what, "--as", "markdown").out
    alone = native.here("replay", runs[0])
    assert (alone.code, alone.out.splitlines()[-1]) == (0, "same")
