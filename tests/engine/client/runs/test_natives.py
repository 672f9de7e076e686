"""What native operators gave in a run is made again, and stands between what is recorded of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from engine_lab import APP, Lab

from dspex.bus import codecs
from dspex.bus.port import NewMessage
from dspex.bus.serving.programs.exchanges import Exchange, Exchanges
from dspex.engine.cli.runs.drawing import drawn
from dspex.engine.cli.runs.natives import interpose
from dspex.engine.cli.runs.requests import lines as lines_of
from dspex.engine.cli.runs.requests import requests_of
from dspex.engine.client.runs.export import load
from dspex.engine.client.runs.then.decisions import decisions_of
from dspex.engine.client.runs.then.recorded import taken_by
from dspex.engine.client.runs.tree import Happening, Tree
from dspex.engine.replay.altered import GoingOn
from dspex.engine.replay.natives import NativeValues
from dspex.engine.replay.topology import replayed_run
from dspex.engine.replay.watched import ReplayPlace
from dspex.engine.runtime.arrival import Arrival
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def total(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
    return state + 1, [{"intent": data["intent"], "n": state + 1}]


def triage() -> Topology:
    topology = Topology("triage")
    read = topology.source("in").filter("has(text)", name="read")
    asked = read.set({"size": "len(text)"}, name="size").predict("text -> intent", name="classify")
    urgent, rest = asked.branch("intent == 'card'", name="urgent")
    urgent.map(louder, name="louder").sink("out")
    rest.sink("others")
    asked.key_by("intent", name="by_intent").stateful(total, init=int, name="total").debounce("10s", name="last").sink("sums")
    return topology


def louder(data: dict[str, Any]) -> dict[str, Any]:
    text = data["text"].upper()
    data["text"] = "spoiled, for whoever looks later"
    return {"text": text, "left": 10 // data["size"] if data["size"] != 13 else 1 // 0}


def made(lab: MakeLab, topology: Topology, *, intent: str = "card") -> Lab:
    one = lab(topology)
    one.answers["classify"] = lambda inputs, work: {"intent": str(inputs["text"]).split()[0]}
    one.start()
    one.work()
    return one


def shown(one: Lab, topology: Topology, run: str) -> Happening:
    async def found() -> Happening:
        past, applied = await one.client.run(run).history()
        root = Tree(past, applied).root
        decided = {told.approval: told for told in await decisions_of(one.client.bus, APP, past, applied)}
        for name, entries in taken_by([past]).items():
            values = NativeValues(run)
            again = await replayed_run(one.client.bus, APP, topology.graph, applied[name], {}, entries, run, values)
            assert all(differs.excused for differs in again.diverged)
            interpose(root, topology.graph, applied[name], past, values.found, decided)
        return root

    root: Happening = one.run(found())
    return root


def lines(one: Lab, topology: Topology, run: str) -> list[str]:
    """As people see it, without times."""
    root = shown(one, topology, run)
    return [re.sub(r"\+[0-9.]+s  ", "", line) for line in drawn(root, root.time)]


def test_each_value_stands_between_what_it_came_of_and_what_came_of_it(lab: MakeLab) -> None:
    one = made(lab, triage())
    one.publish("in", {"text": "card lost"})
    run = one.publish("in", {"text": "card arrived?"[:12]})
    one.advance(30)
    assert lines(one, triage(), run) == [
        'in  {"text":"card arrived"}',
        "└─ ~ read#0  passes",
        '   ~ size#0  {"text":"card arrived","size":12}',
        "   classify#0  worker  0 ms",
        '   │  in   {"text":"card arrived"}',
        '   │  out  {"intent":"card"}',
        '   ├─ to by_intent/card  {"text":"card arrived","size":12,"intent":"card"}',
        '   │  ~ total/card#0  {"intent":"card","n":2}',
        "   │  ~ last/card#0  keeps it",
        '   │  ~ last/card#1  woken by a timer  {"intent":"card","n":2}',
        '   │  → sums  {"intent":"card","n":2}',
        "   └─ ~ urgent#0  outlet 0: intent == 'card'",
        '      ~ louder#0  {"text":"CARD ARRIVED","left":0}',
        '      → out  {"text":"CARD ARRIVED","left":0}',
    ]
    told = {told.label: told for told in shown(one, triage(), run)}
    assert [label for label in told if told[label].recorded] == ["in", "classify#0", "by_intent/card", "sums", "out"]


def test_where_an_event_was_dropped_or_failed_is_said(lab: MakeLab) -> None:
    one = made(lab, triage())
    dropped, failed = one.publish("in", {"no": "text"}), one.publish("in", {"text": "card arrived!"})
    other = one.publish("in", {"text": "rate?"})
    one.advance(5)
    assert lines(one, triage(), dropped)[1:] == ["└─ ~ read#0  dropped"]
    said = lines(one, triage(), failed)
    at = next(index for index, line in enumerate(said) if "louder#0" in line)
    assert "~ louder#0  failed" in said[at]
    assert "ZeroDivisionError" in said[at + 1]
    assert "dead letter at louder" in said[at + 2]
    assert any("~ urgent#0  outlet 1: none of the tests" in line for line in lines(one, triage(), other))


def test_what_a_person_decided_and_what_a_window_gave_stand_below_what_they_came_of(lab: MakeLab) -> None:
    topology = Topology("waiting")
    keyed = topology.source("in").key_by("intent", name="by_intent")
    keyed.approve(name="sign").sink("signed")
    keyed.window("5s").count(name="counted").sink("counts")
    one = lab(topology)
    one.start()
    run, left = (one.publish("in", {"intent": intent}) for intent in ("card", "rate"))
    one.advance(2)

    async def decide(run: str, decision: Literal["accept", "reject"], note: str) -> None:
        (waiting,) = [each async for each in one.client.approvals() if each.event.run == run]
        await one.client.decide(waiting, decision, note=note)

    one.run(decide(run, "accept", "fine"))
    one.run(decide(left, "reject", ""))
    one.advance(60)
    said = lines(one, topology, run)
    at = next(index for index, line in enumerate(said) if "accepted by" in line)
    assert re.search(r"~ sign/card#0  ", said[at - 1]), said
    assert re.search(r"~ sign#0  accepted by \S+: fine  ", said[at]), said
    assert '→ signed  {"intent":"card"}' in said[at + 1]
    assert any(
        re.search(r'~ counted/card#1  woken by a timer  \{"key":"card","start":"[-0-9T:+]+","end":"\S+","value":1\}', s)
        for s in said
    )
    said = lines(one, topology, left)
    at = next(index for index, line in enumerate(said) if "dead letter" in line)
    assert re.search(r"~ sign#0  rejected by ", said[at - 1]), said


def test_of_calls_it_is_said_who_answered_and_what_a_model_was_asked(lab: MakeLab) -> None:
    one = made(lab, triage())
    run = one.publish("in", {"text": "card arrived"})
    one.advance(5)

    async def found() -> dict[str, list[dict[str, Any]]]:
        return await requests_of(one.client, await one.client.run(run).tree())

    ((attempt,),) = one.run(found()).values()
    assert (attempt["attempt"], attempt["recorded"], attempt["worker"], attempt["route"]) == (1, True, "lab", "worker")
    assert [message["role"] for message in attempt["prompt"]] == ["system", "user"]
    assert "card arrived" in attempt["prompt"][1]["content"]
    brief, full = ([*lines_of(attempt, everything=everything)] for everything in (False, True))
    assert brief[0] == "attempt 1  worker lab"
    assert brief[1].startswith("  ~ system  ")
    assert all(len(line) < 200 for line in brief)
    assert len(full) > len(brief)
    assert [*lines_of({**attempt, "attempt": 2}, everything=True, before=attempt)] == [
        "attempt 2  worker lab",
        "  ~ prompt as in attempt 1",
    ]


def test_what_a_model_said_and_was_asked_is_told_once_its_call_has_ended(lab: MakeLab, tmp_path: Path) -> None:
    one = made(lab, triage())
    room = Exchanges(400)
    room.add(
        Exchange("model", "main", {"messages": [{"role": "user", "content": "which?"}]}, "It is a card.", {"cost": 0.5}, 0.25)
    )
    room.add(Exchange("tool", "look_up", {"city": "Bern"}, "x" * 1000))
    one.exchanges["classify"] = room.packed()
    run = one.publish("in", {"text": "card arrived"})
    one.advance(5)

    async def found() -> tuple[Happening, dict[str, list[dict[str, Any]]]]:
        await one.client.run(run).export(tmp_path / "run.jsonl")
        tree = await one.client.run(run).tree()
        return tree, await requests_of(one.client, tree)

    tree, asked = one.run(found())
    ((attempt,),) = asked.values()
    said = [*lines_of(attempt, everything=True)]
    at = said.index("  model main said  250 ms  $0.5000")
    assert said[at + 1 : at + 3] == ["    It is a card.", "  1 more that the record does not keep: pools.*.keep_exchanges"]
    assert "which?" in said[at - 1]
    (step,) = (step for told in tree for step in told.attempts)
    assert (step.exchanges[0]["said"], step.exchanges[0]["kind"]) == ("It is a card.", "model")
    assert [step.exchanges for step in load(tmp_path / "run.jsonl").steps] == [step.exchanges]


class Changed(NativeValues):
    """Changes what an operator gives, and lets that go on."""

    def __init__(self, run: str, at: str, **changed: Any) -> None:
        super().__init__(run)
        self._going_on, self._at, self._changed = GoingOn(run), at, changed
        self.sent: list[Any] = []

    def arrives(self, where: ReplayPlace, arrival: Arrival, *, again: bool) -> Arrival:
        return super().arrives(where, self._going_on.arrives(arrival), again=again)

    def gives(self, node: str, outlet: int, data: Any, walk: Any) -> Any:
        data = super().gives(node, outlet, data, walk)
        return {**data, **self._changed} if node == self._at else data

    async def gave(self, where: ReplayPlace, messages: Sequence[NewMessage]) -> None:
        self._going_on.gave(messages)
        self.sent += [(m.subject, codecs.decode(m.data, "application/json")) for m in messages if m.subject in ("out", "sums")]


def changed(one: Lab, run: str, at: str, **values: Any) -> list[Any]:
    async def found() -> list[Any]:
        past, applied = await one.client.run(run).history()
        watcher = Changed(run, at, **values)
        entries = taken_by([past])["triage"]
        await replayed_run(one.client.bus, APP, triage().graph, applied["triage"], {}, entries, run, watcher)
        return watcher.sent

    sent: list[Any] = one.run(found())
    return sent


def test_what_is_changed_goes_on_over_calls_and_hops_and_a_call_that_is_not_made_does_not_arrive(lab: MakeLab) -> None:
    one = made(lab, triage())
    run = one.publish("in", {"text": "card arrived"})
    one.advance(30)
    assert changed(one, run, "none") == [
        ("out", {"text": "CARD ARRIVED", "left": 0}),
        ("sums", {"intent": "card", "n": 1}),
    ]
    assert changed(one, run, "size", size=2)[0] == ("out", {"text": "CARD ARRIVED", "left": 5})
    assert changed(one, run, "total", n=7)[0] == ("out", {"text": "CARD ARRIVED", "left": 0})
    asked = len(one.asked)
    left = changed(one, run, "read", text=None, size="spoiled")
    assert left == [("sums", {"intent": "card", "n": 1})]  # of state, which is what the log says
    assert len(one.asked) == asked


def test_a_run_of_many_events_is_readable(lab: MakeLab) -> None:
    topology = Topology("wide")
    many = topology.source("in").flat_map(lambda d: [{"n": n} for n in range(d["n"])], name="many")
    some = many.map(lambda d: {"n": d["n"], "odd": d["n"] % 2}, name="odd").filter("odd", name="only")
    some.predict("n: int -> intent", name="classify").sink("out")
    one = made(lab, topology)
    one.answers["classify"] = lambda inputs, work: {"intent": "card"}
    run = one.publish("in", {"n": 300})
    one.advance(60)
    said = lines(one, topology, run)
    assert len(said) < 40
    assert said[1].endswith('~ many#0  gives 300: {"n":0}, …')
    assert said[-1].endswith("… 295 more of odd (148 calls, 148 outputs): --all shows them")
