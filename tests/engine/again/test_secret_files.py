"""Files of runs with secret fields, done again: where no marker can stand for a value, its field is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_lab import APP, Lab
from pydantic import BaseModel, Field

from dspex.bus.errors import RecordingIncomplete
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving.keys.keyring import Keyring
from dspex.bus.serving.keys.secret_fields import SECRET, Secrets
from dspex.engine.again.change import ForkChange
from dspex.engine.again.fork import delivered, forked
from dspex.engine.again.repeat import repeat
from dspex.engine.again.replays import of_file
from dspex.engine.client.client import Client
from dspex.engine.client.runs.export import RunFile, load
from dspex.operators.native.signature import Signature
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
HIDE: Any = {"secret": True}


class Card(BaseModel):
    number: int


class Said(BaseModel):
    text: str


class Texts(Said):
    iban: str = Field(json_schema_extra=HIDE)


class Number(Said):
    pin: int = Field(json_schema_extra=HIDE)


class Whole(Said):
    card: Card = Field(json_schema_extra=HIDE)


class Several(Said):
    codes: list[str] = Field(json_schema_extra=HIDE)


class Plain(BaseModel):
    reply: str


class Counted(Plain):
    score: float = Field(json_schema_extra=HIDE)


GIVES = {"reply": "done", "score": 0.25}


def asking(asked: type[BaseModel], answered: type[BaseModel], change: Callable[[Any], Any] | None = None) -> Topology:
    topology = Topology("asking")
    source = topology.source("in")
    way = source if change is None else source.map(change, name="change")
    way.predict(Signature.of(asked, answered), name="ask", retry={"attempts": 1}).sink("out")
    return topology


def exported(make: MakeLab, path: Path, topology: Topology, event: Any) -> RunFile:
    """The file of a run of an application that seals."""
    one = make(topology)

    def connected() -> Any:
        bus = one.server.connect()
        bus.sealing = Keyring(bus, APP, "KEY", {"KEY": "5" * 64})
        return bus

    one.client = Client(bus=connected(), app=APP)
    one.answers["ask"] = lambda inputs, work: {n: GIVES[n] for n in work.spec.fields if n in GIVES} or {"reply": "done"}
    one.start(bus=connected())
    one.work(bus=connected())
    run = one.publish("in", event)
    one.advance(5)
    one.run(one.client.run(run).export(path))
    return load(path)


@pytest.mark.parametrize(
    ("topology", "event", "lost"),
    [
        (asking(Number, Plain), {"text": "a", "pin": 73519}, "pin"),
        (asking(Whole, Plain), {"text": "a", "card": {"number": 4929}}, "card"),
        (asking(Several, Plain), {"text": "a", "codes": ["4711"]}, "codes"),
        (asking(Number, Plain, lambda d: {**d, "pin": len(d["text"])}), {"text": "a"}, "pin"),
        (asking(Said, Counted), {"text": "a"}, "score"),
        (asking(Number, Plain, lambda d: {**d, "pin": d["cards"][0]["pin"]}), {"text": "a", "cards": [{"pin": 73519}]}, "pin"),
    ],
    ids=["a number", "a type", "a list", "made by an operator", "of an answer", "nested"],
)
def test_a_file_without_a_secret_that_is_no_text_says_which_one_it_lacks(
    lab: MakeLab, tmp_path: Path, topology: Topology, event: Any, lost: str
) -> None:
    file = exported(lab, tmp_path / "run.jsonl", topology, event)
    assert file.lost == (lost,)

    async def again() -> None:
        await repeat(None, file, [topology.graph])

    with pytest.raises(RecordingIncomplete, match=f"{lost}: secret, and no text") as e:
        asyncio.run(again())
    assert e.value.fix == f"from the server, which has it: dspex replay {file.info.id}"


def test_a_table_with_a_secret_column_is_told_as_what_cannot_be_replayed() -> None:
    pa, secrets = pytest.importorskip("pyarrow"), Secrets({"pin"})
    assert secrets.lost({"batch": pa.table({"pin": [1]}), "text": "a"}) == {"batch"}
    assert secrets.lost(pa.table({"pin": [1]})) == {"data"}
    assert secrets.lost({"batch": pa.table({"n": [1]})}) == set()
    assert secrets.lost(b"\xff") == {"data"}
    assert secrets.lost({"pin": None, "a": [{"pin": "text"}]}) == set()


def test_a_secret_that_an_operator_makes_is_neither_a_difference_nor_a_stop(lab: MakeLab, tmp_path: Path) -> None:
    topology = Topology("asking")
    asked = topology.source("in").predict(Signature.of(Texts, Plain), name="ask", retry={"attempts": 1})
    asked.set({"iban": "upper(iban)"}, name="upper").sink("out")
    file = exported(lab, tmp_path / "run.jsonl", topology, {"text": "a", "iban": "de02 1203"})
    assert (file.lost, file.hidden) == ((), {"iban"})

    async def again(graph: Any) -> bool:
        return (await repeat(None, file, [graph])).diff.same

    assert asyncio.run(again(topology.graph))
    made = asking(Texts, Plain, lambda d: {**d, "iban": f"{d['text']} of today"})
    with pytest.raises(RecordingIncomplete, match="iban of ask#0 cannot be compared: secret"):
        asyncio.run(again(made.graph))


def test_no_call_is_made_with_a_marker_in_the_place_of_a_secret(lab: MakeLab, tmp_path: Path) -> None:
    topology = asking(Texts, Plain)
    file = exported(lab, tmp_path / "run.jsonl", topology, {"text": "a", "iban": "DE02120300000000202051"})

    async def make(pool: str, request: CallRequest) -> CallRecord:
        raise AssertionError(f"asked with {dict(request.inputs)}")

    async def again() -> None:
        await repeat(None, file, [topology.graph], mode="live", make=make)

    with pytest.raises(RecordingIncomplete, match=r"ask would be asked with \(secret\) in iban"):
        asyncio.run(again())
    assert SECRET in file.text.decode()


def test_a_file_names_the_builds_that_wrote_it_and_a_replay_what_differs(lab: MakeLab, tmp_path: Path) -> None:
    topology = asking(Said, Plain)
    file = exported(lab, tmp_path / "run.jsonl", topology, {"text": "a"})
    (said,) = file.builds["asking"]
    assert said["graph"] == topology.graph.digest
    other = asking(Said, Plain, lambda d: d)

    async def replayed(graph: Any) -> Any:
        return await of_file(None, file, [graph], "strict")

    assert asyncio.run(replayed(topology.graph)).builds == {}
    told = asyncio.run(replayed(other.graph))
    assert told.same
    assert told.builds["graph"] == (topology.graph.digest, other.graph.digest)


def test_what_is_kept_of_a_fork_is_not_delivered_with_a_marker_for_a_secret(lab: MakeLab, tmp_path: Path) -> None:
    topology, one = Topology("asking"), list[Lab]()
    asked = topology.source("in").predict(Signature.of(Texts, Plain), name="ask", retry={"attempts": 1})
    asked.set({"iban": "upper(iban)"}, name="upper").sink("out")
    file = exported(
        lambda *a: one.append(lab(*a)) or one[0], tmp_path / "run.jsonl", topology, {"text": "a", "iban": "de02 12"}
    )
    run, change, graphs = file.info.id, ForkChange(outputs={"reply": "other"}), [topology.graph]

    async def sent(number: int) -> list[Any]:
        events = one[0].client.watch("out", start="all")
        return [(await anext(events)).data["iban"] for _ in range(number)]

    made = one[0].run(forked(one[0].client, run, "ask", change, graphs))
    with pytest.raises(RecordingIncomplete, match=r"^out: secret, so what is kept of run .* has not got it") as refused:
        one[0].run(delivered(one[0].client, made.run, graphs))
    assert refused.value.fix == f"fork {run} anew, with --deliver"
    assert len(one[0].messages("out")) == 1
    one[0].run(forked(one[0].client, run, "ask", change, graphs, deliver=True))
    assert one[0].run(sent(2)) == ["DE02 12"] * 2
