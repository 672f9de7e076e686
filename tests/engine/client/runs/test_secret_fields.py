"""Fields that a signature marks secret: without a key nothing is stored that has them, and nobody is shown what they hold."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from engine_lab import APP, STREAM, Lab
from pydantic import BaseModel, Field

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, Divergence
from dspex.bus.memory.connection import MemoryBus
from dspex.bus.serving.keys.keyring import Keyring
from dspex.bus.serving.keys.secret_fields import SECRET, Secrets
from dspex.bus.serving.programs.exchanges import Exchange, Exchanges
from dspex.engine.again.repeat import repeat
from dspex.engine.cli.runs.drawing import drawn
from dspex.engine.cli.runs.requests import requests_of
from dspex.engine.client.client import Client
from dspex.engine.client.following import hidden
from dspex.engine.client.letters import DeadLetter
from dspex.engine.client.runs.export import load
from dspex.engine.client.runs.then.masking import masked, secrets_of
from dspex.engine.client.runs.tree import Happening
from dspex.engine.client.status import approvals, state
from dspex.engine.testing.driver import Driver
from dspex.operators.native.signature import Signature
from dspex.operators.recorded.calls import predict
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
IBAN, PIN = "DE02120300000000202051", 73519
KEYS = {"KEY": "5" * 64}


class Account(BaseModel):
    owner: str
    iban: str = Field(json_schema_extra={"secret": True})


class Asked(BaseModel):
    text: str
    account: Account
    pin: int = Field(json_schema_extra={"secret": True})


class Answered(BaseModel):
    reply: str
    code: str = Field(json_schema_extra={"secret": True})


ASK = Signature.of(Asked, Answered)
EVENT = {"text": f"pay from {IBAN}", "account": {"owner": "ann", "iban": IBAN}, "pin": PIN}


def paying() -> Topology:
    topology = Topology("paying")
    source = topology.source("in").map(lambda d: {**d, "from": d["account"]["iban"]}, name="rename")
    source.predict(ASK, name="ask", retry={"attempts": 1}).sink("out")
    return topology


def sealed(lab: Lab) -> MemoryBus:
    bus = lab.server.connect()
    bus.sealing = Keyring(bus, APP, "KEY", KEYS)
    return bus


def ran(make: MakeLab, *pins: int) -> tuple[Lab, list[str]]:
    """Runs of an application that seals; a pin of 0 makes the call fail, in words that quote what is secret."""
    lab = make(paying())
    lab.client = Client(bus=sealed(lab), app=APP)

    def answer(inputs: Any, work: Any) -> Any:
        if not inputs["pin"]:
            raise ArithmeticError(f"no {inputs['account']['iban']}")
        return {"reply": f"done for {inputs['account']['iban']}", "code": f"c-{inputs['pin']}"}

    lab.answers["ask"] = answer
    lab.start(bus=sealed(lab))
    lab.work(bus=sealed(lab))
    runs = [lab.publish("in", {**EVENT, "pin": pin}) for pin in pins]
    lab.advance(5)
    return lab, runs


def holds_a_secret(said: object) -> bool:
    return any(one in str(said) for one in (IBAN, str(PIN)))


def test_a_topology_with_a_secret_field_is_not_applied_where_nothing_seals_what_it_stores(lab: MakeLab) -> None:
    one = lab(paying())
    with pytest.raises(ConfigError, match="code, iban, pin: marked secret, and what a topology asks is stored in clear") as e:
        one.start()
    assert (e.value.code, e.value.node) == ("DX127", "paying/ask")
    assert one.run(one.client.bus.stream(subjects.stream(APP))) is None


def test_nothing_that_would_be_read_again_is_stored_without_a_key(lab: MakeLab) -> None:
    one = lab()
    one.start()
    asked = predict(ASK)
    for what in (one.client.submit(asked, EVENT), one.client.session("s").call(asked, EVENT)):
        with pytest.raises(ConfigError, match="is stored in clear text here") as e:
            one.run(what)
        assert e.value.code == "DX127"


def test_what_a_run_did_is_shown_without_what_is_secret_under_whatever_name_it_stands(lab: MakeLab) -> None:
    one, (done, failed) = ran(lab, PIN, 0)
    for run in (done, failed):
        root = one.run(one.client.run(run).tree())
        assert root.secrets == {"iban", "pin", "code"}
        assert holds_a_secret([told.as_dict() for told in root])
        shown = masked(root, secrets_of(root))
        assert shown.data["account"] == {"owner": "ann", "iban": SECRET}
        assert shown.data["text"] == f"pay from {SECRET}"
        assert not holds_a_secret([told.as_dict() for told in shown])
        assert not holds_a_secret(list(drawn(shown, shown.time)))
    (letter,) = (told for told in shown if told.kind == "letter")
    assert letter.error is not None
    assert letter.error["message"] == f"no {SECRET}"


def test_of_a_call_with_a_secret_field_nothing_is_told_that_a_model_was_asked_or_said(lab: MakeLab) -> None:
    room = Exchanges(1000)
    room.add(Exchange("model", "main", None, "nothing that could be read: 99 88"))
    one, (run,) = ran(lambda topology: _saying(lab(topology), room), PIN)

    async def told() -> tuple[Happening, object]:
        tree = await one.client.run(run).tree()
        return tree, await requests_of(one.client, tree)

    tree, requests = one.run(told())
    assert [step.exchanges for happening in tree for step in happening.attempts] == [[]]
    assert "99 88" not in str(requests)


def _saying(one: Lab, room: Exchanges) -> Lab:
    one.exchanges["ask"] = room.packed()
    return one


def test_two_runs_are_compared_by_what_is_secret_and_the_difference_is_told_without_it(lab: MakeLab) -> None:
    one, (a, b, same) = ran(lab, PIN, 88_888, PIN)
    assert one.run(one.client.diff(a, same)).same
    diff = one.run(one.client.diff(a, b))
    assert {"pin", "in.pin", "code"} <= {step.field for step in diff.steps}
    assert {(step.a, step.b) for step in diff.steps if step.field == "pin"} == {(SECRET, SECRET)}
    for said in (str(diff), diff.markdown(), json.dumps(diff.as_dict())):
        assert not holds_a_secret(said)
        assert "88888" not in said


def test_a_replay_that_stops_at_a_call_does_not_say_what_is_secret_of_it(lab: MakeLab) -> None:
    one, (run,) = ran(lab, PIN)
    changed = Topology("paying")
    source = changed.source("in").map(lambda d: {**d, "pin": d["pin"] + 1, "text": f"{d['text']}, {d['pin']}"}, name="rename")
    source.predict(ASK, name="ask", retry={"attempts": 1}).sink("out")

    async def again() -> None:
        await repeat(None, await one.client.run(run).file(state=True), [changed.graph])

    with pytest.raises(Divergence, match="its input is not the recorded one") as e:
        one.run(again())
    assert not holds_a_secret(e.value)
    assert f"pin: {SECRET} → {SECRET}" in str(e.value)


def test_what_stands_in_tables_and_bytes_is_not_shown() -> None:
    pa, secrets = pytest.importorskip("pyarrow"), Secrets({"iban"})
    named, renamed = pa.table({"iban": [IBAN]}), pa.table({"from": [IBAN, "x"]})
    harmless = pa.table({"from": ["nobody"]})
    secrets.learn({"batch": named})
    shown = secrets.masked({"a": named, "b": renamed, "c": harmless, "d": b"from " + IBAN.encode(), "e": b"nobody"})
    assert shown == {"a": SECRET, "b": SECRET, "c": harmless, "d": SECRET, "e": b"nobody"}
    assert secrets.hide(b"\xff nobody can read this") == SECRET


def test_a_letter_of_a_submitted_call_is_shown_by_the_marks_that_it_brings() -> None:
    spec = predict(ASK).to_call().spec
    data = {"spec": b64encode(spec.packed).decode(), "inputs": {**EVENT, "pin": PIN}}
    assert holds_a_secret(data)
    assert not holds_a_secret(hidden.value(Secrets(()), data))
    assert hidden.value(Secrets(()), {"spec": "of something else", "inputs": 1}) == {"spec": "of something else", "inputs": 1}


def test_a_file_of_a_run_has_no_secrets_and_says_which_fields_are_missing(lab: MakeLab, tmp_path: Path) -> None:
    one, (run,) = ran(lab, PIN)
    one.run(one.client.run(run).export(tmp_path / "run.jsonl"))
    assert not holds_a_secret((tmp_path / "run.jsonl").read_text())
    file = load(tmp_path / "run.jsonl")
    assert file.root.secrets == {"iban", "pin", "code"}
    assert file.root.data["account"]["iban"] == SECRET


def test_a_file_of_a_run_whose_secrets_are_texts_is_done_again(lab: MakeLab, tmp_path: Path) -> None:
    class Said(BaseModel):
        text: str
        iban: str = Field(json_schema_extra={"secret": True})

    def saying() -> Topology:
        topology = Topology("saying")
        topology.source("in").predict(Signature.of(Said, Answered), name="ask").sink("out")
        return topology

    one = lab(saying())
    one.client = Client(bus=sealed(one), app=APP)
    one.answers["ask"] = lambda inputs, work: {"reply": inputs["iban"], "code": "c-1234"}
    one.start(bus=sealed(one))
    one.work(bus=sealed(one))
    run = one.publish("in", {"text": "a", "iban": IBAN})
    one.advance(5)
    one.run(one.client.run(run).export(tmp_path / "run.jsonl"))
    with Driver(saying()) as d:
        assert d.replay(tmp_path / "run.jsonl").same


def test_letters_approvals_and_what_operators_keep_are_shown_without_what_is_secret(lab: MakeLab) -> None:
    topology = Topology("kept")
    source = topology.source("in")
    source.key_by("text").reduce(lambda a, b: {"from": b["account"]["iban"], **b}, name="last").sink("lasts")
    source.approve(name="ok", show=["account"]).predict(ASK, name="ask", retry={"attempts": 1}).sink("out")
    one = lab(topology)
    one.client = Client(bus=sealed(one), app=APP)

    def fail(inputs: Any, work: Any) -> Any:
        raise ArithmeticError(f"no {inputs['account']['iban']}")

    one.answers["ask"] = fail
    one.start(bus=sealed(one))
    one.work(bus=sealed(one))
    for _ in range(2):
        one.publish("in", {**EVENT, "text": "a"})
    one.advance(5)

    async def looked_at() -> tuple[list[object], list[object]]:
        bus, secrets = one.client.bus, await hidden.secrets_of(one.client)
        waiting = [found async for found in approvals.listing(bus, APP)]
        kept = await state.listing(bus, APP, "last")
        assert kept != []
        shown = [hidden.approval(secrets, found).as_dict(event=True) for found in waiting]
        events = await hidden.HiddenEvents.of(one.client)
        return [*waiting, *kept], [*shown, *(events.state(found).as_dict() for found in kept)]

    stored, shown = one.run(looked_at())
    assert (len(stored), holds_a_secret(stored), holds_a_secret(shown)) == (3, True, False)
    one.run(_accepted(one))
    one.advance(5)
    letters: list[DeadLetter] = one.letters()
    secrets = one.run(hidden.secrets_of(one.client))
    assert len(letters) == 2
    assert all(holds_a_secret(letter.as_dict()) for letter in letters)
    assert not holds_a_secret([hidden.letter(secrets, letter).as_dict(traceback=True) for letter in letters])


async def _accepted(one: Lab) -> None:
    for found in [found async for found in one.client.approvals()]:
        await one.client.decide(found.id, "accept")


def test_what_a_person_decides_of_a_secret_is_stored_sealed_and_counts(lab: MakeLab) -> None:
    topology = Topology("asked")
    topology.source("in").approve(name="ok", show=["account"]).predict(ASK, name="ask").sink("out")
    one = lab(topology)
    one.client = Client(bus=sealed(one), app=APP)
    one.answers["ask"] = lambda inputs, work: {"reply": inputs["text"], "code": "c-1234"}
    one.start(bus=sealed(one))
    one.work(bus=sealed(one))
    for text in ("accepted", "rejected"):
        one.publish("in", {**EVENT, "text": text, "pin": PIN})
    one.advance(5)

    async def decided() -> None:
        accepted, rejected = [found async for found in one.client.approvals()]
        await one.client.decide(accepted, "accept", edit={"text": f"from {IBAN}"}, note=f"as {IBAN} is known")
        await one.client.decide(rejected, "reject", note=f"nobody knows {IBAN}")

    one.run(decided())
    one.advance(5)
    assert [data["text"] for data in one.outputs("out")] == [f"from {IBAN}"]
    assert IBAN in one.letters()[0].message
    stored = [m for name in (STREAM, subjects.sources(APP)) if name in one.server.streams for m in _stored(one, name)]
    assert len(stored) > 10
    assert not any(IBAN.encode() in m.data for m in stored)
    secrets = one.run(hidden.secrets_of(one.client))
    assert not holds_a_secret(one.run(hidden.whole_letters(one.client, secrets, one.letters())))


def _stored(one: Lab, stream: str) -> list[Any]:
    return [*one.server.streams[stream].messages.values()]


def test_what_is_watched_is_hidden_by_what_its_way_had_that_is_secret_and_by_nothing_else(lab: MakeLab) -> None:
    """Two topologies that have no secret: one that goes on behind the one that has, and one beside it."""
    after, beside = Topology("after"), Topology("beside")
    after.source("out").map(lambda d: {"told": d["from"]}, name="tell").sink("told")
    beside.source("other").map(lambda d: {"from": d["iban"]}, name="rename").sink("others")
    first = Topology("paying")
    asked = first.source("in").predict(ASK, name="ask")
    asked.map(lambda d: {"from": d["account"]["iban"]}, name="rename").sink("out")
    one = lab(first, after, beside)
    one.client = Client(bus=sealed(one), app=APP)
    one.answers["ask"] = lambda inputs, work: {"reply": "done", "code": "c-1234"}
    one.start(bus=sealed(one))
    one.work(bus=sealed(one))
    one.publish("in", {**EVENT, "pin": PIN})
    one.publish("other", {"iban": IBAN})
    one.advance(5)

    async def watched() -> dict[str, Any]:
        events = await hidden.HiddenEvents.of(one.client)
        runs = [info.id async for info in one.client.runs()]
        sent = [event for found in (await one.client.outputs(runs)).values() for event in found]
        return {event.subject: (await events.shown(event)).data for event in sent}

    assert one.run(watched()) == {"out": {"from": SECRET}, "told": {"told": SECRET}, "others": {"from": IBAN}}


def test_who_watches_hides_what_a_topology_marks_that_is_applied_meanwhile(lab: MakeLab) -> None:
    beside = Topology("beside")
    beside.source("other").map(lambda d: d, name="pass").sink("others")
    one = lab(beside)
    one.client = Client(bus=sealed(one), app=APP)
    one.start(bus=sealed(one))
    run = one.publish("other", {"iban": IBAN})
    one.advance(2)
    (event,) = one.run(one.client.run(run).outputs())
    events = one.run(hidden.HiddenEvents.of(one.client))
    assert one.run(events.shown(event)).data == {"iban": IBAN}
    one.start("b", paying(), bus=sealed(one))
    assert one.run(events.shown(event)).data == {"iban": SECRET}


def test_of_state_nothing_is_shown_but_times_and_counts_where_a_secret_may_be_in_it_under_another_name(lab: MakeLab) -> None:
    """Four topologies without a secret: before the one that has some, behind it, of the same source, and beside them."""
    before, after, same, beside = (Topology(name) for name in ("before", "after", "same", "beside"))
    _keeping(after, "out"), _keeping(same, "in"), _keeping(beside, "other")
    _keeping(before, "early").sink("in")
    first = Topology("paying")
    asked = _keeping(first, "in").predict(ASK, name="ask")
    asked.map(lambda d: {"text": d["text"], "from": d["account"]["iban"]}, name="rename").sink("out")
    one = lab(first, before, after, same, beside)
    one.client = Client(bus=sealed(one), app=APP)
    one.answers["ask"] = lambda inputs, work: {"reply": "done", "code": "c-1234"}
    one.start(bus=sealed(one))
    one.work(bus=sealed(one))
    one.publish("early", {**EVENT, "text": "a"})
    one.publish("other", {"text": "a", "from": IBAN})
    one.advance(5)

    async def kept(topology: str, node: str, at: datetime | None = None) -> Any:
        events = await hidden.HiddenEvents.of(one.client)
        (found,) = await state.of_key(one.client.bus, APP, f"{topology}/{node}", "a", at)
        return events.state(found).value

    then = datetime.fromtimestamp(one.run(one.client.bus.stream(STREAM)).now, tz=UTC)
    for name in ("paying", "before", "after", "same"):
        assert [one.run(kept(name, node, at)) for node in ("last", "some") for at in (None, then)] == [SECRET] * 4
        (counted,), (window,) = one.run(kept(name, "counts")), one.run(kept(name, "latest"))
        assert (counted["value"], window["value"], window["start"]) == (1, SECRET, counted["start"])
    assert one.run(kept("beside", "last")) == {"text": "a", "by": IBAN}
    (window,) = one.run(kept("beside", "latest"))
    assert window["value"] == {"text": "a", "by": IBAN}


def _keeping(topology: Topology, subject: str) -> Any:
    """Operators that keep a secret under another name."""
    source = topology.source(subject)
    named = source.map(lambda d: {"text": d["text"], "by": d.get("from") or d["account"]["iban"]}, name="tell")
    keyed = named.key_by("text", name="by_text")
    keyed.reduce(lambda a, b: b, name="last").sink(f"{topology.name}.last")
    keyed.batch(5, within="1h", name="some").sink(f"{topology.name}.some")
    keyed.window("1h").count(name="counts").sink(f"{topology.name}.counts")
    keyed.window("1h").reduce(lambda a, b: b, name="latest").sink(f"{topology.name}.latest")
    return source
