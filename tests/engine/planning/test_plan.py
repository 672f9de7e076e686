"""What a new version would change: one plan, which apply carries out, and which an engine refuses where something is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from engine_lab import APP, SOURCES, STREAM, Cut, Lab

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, SubjectTaken, TopologyError
from dspex.bus.port import NewMessage, StreamConfig, StreamInfo
from dspex.bus.serving.programs import form
from dspex.bus.serving.programs.states import SavedStates
from dspex.engine.graph import pauses
from dspex.engine.graph.graph import Graph
from dspex.engine.graph.hops import groups
from dspex.engine.graph.manifest import Versions, history
from dspex.engine.graph.nodes import StateNode
from dspex.engine.hosting.apply import apply
from dspex.engine.hosting.planning.plan import ApplyPlan, plan
from dspex.engine.hosting.planning.remarks import late
from dspex.engine.hosting.planning.there import There, look
from dspex.engine.replay.partition import PartitionReplay
from dspex.engine.runtime.walk.compile import compile_behind, compile_stage
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asking(name: str = "ask", source: str = "in", **options: Any) -> Topology:
    topology = Topology("asking", **options)
    topology.source(source).predict("text -> answer", name=name).sink("out")
    return topology


def keyed(key: str, name: str = "by", **options: Any) -> Topology:
    topology = Topology("keyed", **options)
    topology.source("in").key_by(key, name=name).predict("text -> answer", name="ask").sink("out")
    return topology


def planned(one: Lab, *topologies: Topology, reset: Sequence[str] = (), again: bool = False) -> ApplyPlan:
    graphs = [t.graph for t in topologies]
    there = one.run(look(one.client.bus, APP, graphs, reset, remarks=True))
    return plan(APP, graphs, there, again=again, reset=reset)


def nodes(found: ApplyPlan) -> dict[str, str]:
    return {c.name.partition("/")[2]: c.op for c in found.changes if c.kind == "node"}


def test_what_is_planned_is_what_apply_then_makes_and_afterwards_nothing_is_left_to_do(lab: MakeLab) -> None:
    one = lab()
    first = planned(one, asking())
    made = {(c.kind, c.name) for c in first.changes if c.op == "create"}
    assert {("stream", STREAM), ("stream", SOURCES), ("bucket", subjects.applied(APP)), ("node", "asking/ask")} <= made
    assert ("consumer", "work-lightweight-1") in made
    assert not one.server.streams, "a plan makes nothing"
    one.start("a", asking())
    there = {*one.server.streams, *one.server.kept("bucket"), *one.server.kept("objects")}
    assert {name for kind, name in made if kind in ("stream", "bucket")} <= there
    assert planned(one, asking()).changes == []


def test_a_plan_is_a_function_of_what_is_there_and_says_all_kinds_of_change() -> None:
    """Nothing is awaited: what is there is given."""
    before = Topology("asking")
    stream = before.source("in").map(lambda d: d, name="same").map(lambda d: d, name="gone").set({"a": "1"}, name="a")
    stream.predict("text -> answer", name="ask").sink("out")
    first = plan(APP, [before.graph], There()).manifests["asking"]
    there = There({"asking": Versions([first], {}, {})})
    after = Topology("asking", renamed_from={"reply": "ask"})
    stream = after.source("in").map(lambda d: d, name="same").set({"a": "2"}, name="a").set({"b": "1"}, name="new")
    stream.predict("text -> answer", name="reply").sink("out")
    found = nodes(plan(APP, [after.graph], there))
    assert found == {"a": "change", "new": "create", "reply": "change", "gone": "delete", "out": "change"}
    row = next(c.as_dict() for c in plan(APP, [after.graph], there).changes if c.name == "asking/reply")
    assert list(row) == ["op", "kind", "name", "before", "after", "additive"]
    assert (row["before"]["name"], row["additive"]) == ("ask", True)


def test_a_name_by_which_rows_of_two_nodes_would_be_mixed_up_is_refused() -> None:
    """The log keeps old names: what is renamed on reading it must not hit what another node has stored, or will store."""

    def version(*names: str, **options: Any) -> Graph:
        topology = Topology("t", **options)
        stream = topology.source("in").key_by("k")
        for name in names:
            stream.reduce(lambda a, b: b, name=name).sink(f"out.{name}")
        return topology.graph

    def refused(*versions: Graph) -> TopologyError | None:
        known, found = Versions([], {}, {}), None
        for graph in versions:
            made = plan(APP, [graph], There({"t": known}), again=True)
            found = made.refused if isinstance(made.refused, TopologyError) else None
            known.known.extend(made.manifests.values())
        return found

    one, renamed = version("x"), version("y", renamed_from={"y": "x"})
    assert refused(one, renamed) is None
    assert refused(one, renamed, version("x", renamed_from={"x": "y"})) is None, "it gets its name back"
    for wrong in (
        [one, version("y", "x", renamed_from={"y": "x"})],  # another node has the old name at once
        [version("x", "y"), version("x", "y", renamed_from={"x": "y", "y": "x"})],
        [one, renamed, version("y", "x")],  # or later
        [one, renamed, version("z", drop=["y"]), version("z", "x")],
        [version("x", "y"), version("x", drop=["y"]), renamed],  # the new name was that of another node
    ):
        error = refused(*wrong)
        assert error is not None
        assert (error.code, "another name than" in error.fix) == ("DX231", True)


def test_a_dropped_operator_is_shown_with_its_open_calls_and_an_engine_of_others_does_not_begin_with_it(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    for text in "abc":
        one.publish("in", {"text": text})
    one.drain()
    new = asking("other", drop=["ask"])
    found = planned(one, new)
    (lost,) = found.lossy
    assert (lost.op, lost.name, lost.before["open_calls"]) == ("delete", "asking/ask", 3)
    with pytest.raises(TopologyError) as e:
        one.start("remote", new, only_additive=True)
    one.hosts.pop("remote")
    assert (e.value.code, e.value.exit_code) == ("DX242", 3)
    assert "3 open calls" in e.value.message
    assert "dspex apply" in e.value.fix
    one.run(apply(one.client.bus, APP, [new.graph]))  # on purpose
    one.start("remote", new, only_additive=True)


def test_what_was_not_declared_is_refused_and_the_plan_still_shows_it(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.publish("in", {"text": "a"})
    one.drain()
    found = planned(one, asking("other"))
    assert (found.refused and found.refused.code, nodes(found)["ask"]) == ("DX232", "delete")


def test_a_changed_key_is_refused_while_its_stage_holds_something(lab: MakeLab) -> None:
    one = lab(keyed("customer"))
    one.start()
    one.publish("in", {"text": "a", "customer": "c", "city": "x"})
    one.advance(1)
    one.drain()
    found = planned(one, keyed("city"))
    (lost,) = found.lossy
    assert (lost.op, lost.name, lost.before["key_by"], lost.after["key_by"]) == ("reset", "keyed/by", "customer", "city")
    with pytest.raises(TopologyError, match="1 open call") as e:
        one.start("new", keyed("city"))
    one.hosts.pop("new")
    assert (e.value.code, "--reset by" in e.value.fix, 'drop=["by"]' in e.value.fix) == ("DX231", True, True)
    one.start("again", keyed("customer"))
    one.work()
    one.advance(1)
    one.drain("again")
    assert (nodes(planned(one, keyed("city")))["by"], planned(one, keyed("city")).lossy) == ("change", [])
    one.start("new", keyed("city"))
    one.publish("in", {"text": "b", "customer": "c", "city": "x"})
    one.advance(1)
    assert [o["text"] for o in one.outputs("out")] == ["a", "b"]


@pytest.mark.parametrize(("key", "reset"), [("city", []), ("city", ["by"]), ("customer", ["by"])])
def test_neither_is_a_key_changed_nor_its_stage_reset_while_frames_of_before_are_unread(
    lab: MakeLab, key: str, reset: list[str]
) -> None:
    one = lab(keyed("customer"))
    one.start()
    bucket = one.run(one.client.bus.bucket(subjects.applied(APP)))
    one.run(pauses.pause(bucket, "keyed", "by", 0.0))
    one.advance(1.1)  # a heartbeat
    for customer in "cd":
        one.publish("in", {"text": "a", "customer": customer, "city": "x"})
    one.advance(1)
    one.drain()
    found = planned(one, keyed(key), reset=reset)
    (lost,) = found.lossy
    assert (lost.op, lost.name, lost.before["unread"]) == ("reset", "keyed/by", 2)
    with pytest.raises(TopologyError, match="2 unread events came over by") as e:
        one.run(apply(one.client.bus, APP, [keyed(key).graph], reset=reset))
    assert (e.value.code, "dspex pause keyed/in;" in e.value.fix, 'drop=["by"]' in e.value.fix) == ("DX231", True, True)
    one.run(pauses.resume(bucket, "keyed", "by"))
    one.run(pauses.pause(bucket, "keyed", "in", 0.0))  # as it says
    one.start("b")
    one.work()
    one.advance(2)
    one.run(apply(one.client.bus, APP, [keyed(key).graph], reset=reset))


@dataclass(frozen=True)
class Formed:
    """A topology that counts, and whose counts have a form."""

    form: str

    @property
    def graph(self) -> Graph:
        def count(n: int, data: Any, ctx: Any) -> tuple[int, list[Any]]:
            return n + 1, [{**data, "n": n + 1}]

        topology = Topology("formed")
        topology.source("in").key_by("k", name="by").stateful(count, init=int, name="count").sink("out")
        nodes = dict(topology.graph.nodes)
        node = nodes["count"]
        assert isinstance(node, StateNode)
        nodes["count"] = replace(node, options={"form": self.form}, state=replace(node.state, form=self.form))
        return replace(topology.graph, nodes=nodes)


def test_state_of_another_form_is_shown_as_what_has_to_be_reset_and_a_reset_begins_anew(lab: MakeLab) -> None:  # P16
    one = lab(Formed("window 60"))
    one.start()
    for key in "aab":
        one.publish("in", {"k": key})
    one.advance(1)
    one.drain()
    new = Formed("window 300").graph
    found = plan(APP, [new], one.run(look(one.client.bus, APP, [new])))
    (lost,) = found.lossy
    assert (lost.op, lost.name, lost.before["rows"], lost.after["form"]) == ("reset", "formed/count", 2, "window 300")
    assert (found.refused and found.refused.code, "--reset count" in str(found.refused and found.refused.fix)) == (
        "DX231",
        True,
    )
    one.run(apply(one.client.bus, APP, [new], reset=["count"]))
    one.start("b", Formed("window 300"))
    one.publish("in", {"k": "a"})
    one.advance(1)
    assert [o["n"] for o in one.outputs("out")] == [1, 2, 1, 1]


@pytest.mark.parametrize("name", ["ask", "by"], ids=["a call", "the stage behind a hop"])
@pytest.mark.parametrize("crashes", [False, True])
def test_reset_drops_open_calls_once_and_the_log_says_so_to_a_replay(lab: MakeLab, name: str, crashes: bool) -> None:
    one = lab(keyed("customer"))
    one.start()
    for n in range(5):
        one.publish("in", {"text": str(n), "customer": "c"})
    one.advance(1)
    one.drain()
    found = planned(one, keyed("customer"), reset=[name])
    assert [(c.op, c.before["open_calls"], c.additive) for c in found.lossy] == [("reset", 5, False)]
    one.run(apply(one.client.bus, APP, [keyed("customer").graph], reset=[name], agreed=found))
    one.start("new")
    if crashes:
        one.kill("new")
        one.start("new")
        one.advance(10)
    one.publish("in", {"text": "later", "customer": "c"})
    one.advance(1)
    one.kill("new")
    one.start("last")  # a manifest drops once: what was opened since stays
    one.advance(10)
    one.work()
    one.advance(1)
    assert [o["text"] for o in one.outputs("out")] == ["later"]
    assert one.letters() == []
    assert differences(one, keyed("customer")) == []


def differences(one: Lab, topology: Topology) -> list[Any]:
    """Where a replay of the stages of a topology gives something else than their logs say."""

    async def go() -> list[Any]:
        bus, graph = one.client.bus, topology.graph
        (m,) = [versions[-1] for versions in (await history(await bus.bucket(subjects.applied(APP)))).values()]
        (source,) = graph.sources
        stages = [(compile_stage(graph, source, m.stages["in"][0], {}, m.hops), m.streams["in"], 1)]
        stages += [(compile_behind(graph, g, m.hops[g[0].name][0], {}, m.hops), "", 64) for g in groups(graph)]
        replays = [PartitionReplay(bus, APP, s, stream, i, n, 1 << 20) for s, stream, n in stages for i in range(n)]
        return [d for replay in replays async for d in replay.differences()]

    found: list[Any] = one.run(go())
    return found


def test_a_node_that_holds_nothing_cannot_be_reset(lab: MakeLab) -> None:
    one, topology = lab(), Topology("plain")
    topology.source("in").map(lambda d: d, name="same").sink("out")
    with pytest.raises(ConfigError, match="keeps no state") as e:
        planned(one, topology, reset=["same"])
    assert e.value.fix == "leave out --reset: no operator here has calls or state"


@pytest.mark.parametrize(("wrong", "fix"), [("ak", "did you mean ask?"), ("q", "one of: ask"), ("in", "one of: ask")])
def test_a_reset_of_what_cannot_be_reset_names_what_can(lab: MakeLab, wrong: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=f"--reset {wrong}") as e:
        planned(lab(), asking(), reset=[wrong])
    assert e.value.fix == fix


def test_apply_does_nothing_where_another_plan_than_the_one_seen_would_be_carried_out(lab: MakeLab) -> None:
    one = lab()
    seen = planned(one, asking())
    one.start("meanwhile", asking("other"))
    with pytest.raises(TopologyError) as e:
        one.run(apply(one.client.bus, APP, [asking(drop=["other"]).graph], agreed=seen))
    assert e.value.code == "DX243"


def test_a_sink_that_another_stream_captures_is_refused_by_the_plan(lab: MakeLab) -> None:
    one = lab()
    one.run(one.client.bus.ensure_stream(StreamConfig("THEIRS", ["out"])))
    refused = planned(one, asking()).refused
    assert isinstance(refused, SubjectTaken)
    assert (refused.code, "THEIRS" in refused.message) == ("DX406", True)


def test_events_of_others_on_a_sink_are_a_warning(lab: MakeLab) -> None:
    one = lab(asking())
    one.start()
    one.work()
    one.publish("in", {"text": "a"})
    one.advance(1)
    assert planned(one, asking()).warnings == []
    one.store(NewMessage("out", b"{}"))
    (warning,) = planned(one, asking()).warnings
    assert warning.startswith("sink 'out': somebody else publishes there")


def test_a_new_source_with_a_history_is_said_to_be_late_where_an_operator_has_a_time(lab: MakeLab) -> None:
    def version(*sources: str) -> Topology:
        topology = Topology("merged")
        first, *rest = [topology.source(s).key_by("k", name=f"by_{s}") for s in sources]
        (first.merge(*rest, name="all") if rest else first).set({"n": "1"}, name="counted").sink("out")
        return topology

    one = lab(version("in"))
    one.run(one.client.bus.ensure_stream(StreamConfig("OLD", ["old"])))
    one.publish("old", {"n": 1})
    one.start()
    graph = version("in", "old").graph
    there = one.run(look(one.client.bus, APP, [graph], remarks=True))
    assert list(late(graph, there)) == []
    timed = replace(graph, nodes={**graph.nodes, "counted": replace(graph.nodes["counted"], op="window")})
    (warning,) = late(timed, there)
    assert "'old' of merged is new, and 1 events are stored" in warning


def test_a_source_whose_stream_trims_before_the_retention_has_passed_is_a_warning() -> None:
    topology = asking()
    theirs = StreamInfo("THEIRS", ("in",), 0.0, 1, 1, 1, 1, own=False, max_age=3600.0, trims=True, max_bytes=1 << 20)
    there = There(streams={"THEIRS": theirs}, holders={"in": "THEIRS"})
    (warning,) = plan(APP, [topology.graph], there).warnings
    assert "max_age 1 h 0 m, max_bytes 1,048,576" in warning
    assert "retention of 168 h 0 m" in warning
    kept = replace(theirs, max_age=0.0, trims=False)
    assert plan(APP, [topology.graph], replace(there, streams={"THEIRS": kept})).warnings == []


@pytest.mark.parametrize("landed", [False, True])
def test_state_that_was_dropped_does_not_come_back_with_its_name_wherever_an_engine_died(lab: MakeLab, landed: bool) -> None:
    def version(n: int) -> Topology:
        topology = Topology("t", drop=["count"] if n == 2 else [])
        keyed = topology.source("in").key_by("k")
        keyed.map(lambda d: d, name=f"v{n}").sink("same")
        if n != 2:
            keyed.aggregate(int, lambda so_far, d: so_far + 1, name="count", ttl="1h").sink("out")
        return topology

    one = lab()
    one.start("a", version(1))
    for _ in range(2):
        one.publish("in", {"k": "a"})
    one.advance(1)
    one.drain("a")
    for at in range(1, 4):  # a claim of each stage, and the commits that drop it
        one.start("b", version(2), bus=Cut(one.server, at, landed))
        one.kill("b")
        one.advance(10)
    one.start("b", version(2))
    assert one.left() == []
    one.drain("b")
    one.start("c", version(3))
    one.publish("in", {"k": "a"})
    one.advance(1)
    assert one.outputs("out") == [1, 2, 1]
    assert one.differences() == []


def test_a_saved_state_that_is_not_there_is_a_warning(lab: MakeLab) -> None:
    one, topology = lab(), Topology("asking")
    topology.source("in").predict("text -> answer", name="ask", state="draft@prod").sink("out")
    (warning,) = planned(one, topology).warnings
    assert warning.startswith("ask of asking has a saved state, and no program 'draft' is saved")
    states = SavedStates(one.client.bus, APP)
    one.run(states.put("draft", form.read({"self": {"demos": [], "signature": {"instructions": "", "fields": []}}})))
    assert "no alias 'prod'" in planned(one, topology).warnings[0]
    one.run(states.promote("draft", 1, "prod"))
    assert planned(one, topology).warnings == []
