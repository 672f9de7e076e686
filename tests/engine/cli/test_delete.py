"""`dspex apply` and `dspex delete` on a real server."""

from __future__ import annotations

from pathlib import Path

from cli_bench import Project
from waiting import eventually

ASKING = """
dspex: 1
topology: first
{more}
sources: {{ {u}.in: {{}} }}
nodes:
  {node}: {{ from: {u}.in, predict: "text -> answer" }}
sinks: {{ {u}.out: {{ from: {node} }} }}
"""
NATIVE = """
dspex: 1
topology: {name}
sources: {{ {u}.in: {{}} }}
nodes:
  size: {{ from: {u}.in, set: {{ size: "len(text)" }} }}
sinks: {{ {u}.{name}: {{ from: size }} }}
"""
COUNTING = """
dspex: 1
topology: first
sources: {{ {u}.in: {{}} }}
nodes:
  size: {{ from: {u}.in, set: {{ size: "len(text)" }} }}
  by_text: {{ from: {u}.in, key_by: text }}
  per_text: {{ from: by_text, window: 1m, count: {{}} }}
sinks: {{ {u}.first: {{ from: size }}, {u}.counts: {{ from: per_text }} }}
"""


def project(folder: Path, unique: str, nats_url: str, *names: str) -> Project:
    files = ", ".join(f'"{name}.yaml"' for name in names)
    made = Project(folder, unique, f"topologies = [{files}]", NATS_URL=nats_url)
    for name in names:
        made.write(f"{name}.yaml", NATIVE.format(name=name, u=unique))
    return made


def applied(one: Project, *options: str) -> list[tuple[int, str]]:
    """Version and change of each topology that `apply` puts in force; before them it prints the plan."""
    rows = one.here("--json", "apply", *options).objects()
    return [(row["version"], row["change"]) for row in rows if "version" in row]


def test_a_version_that_was_replaced_can_be_applied_again_and_run(tmp_path: Path, unique: str, nats_url: str) -> None:
    one = project(tmp_path, unique, nats_url, "first")
    planned = one.here("--json", "plan", "--exit-code")
    assert {tuple(row) for row in planned.objects()} == {("op", "kind", "name", "before", "after", "additive")}
    assert (planned.code, {row["op"] for row in planned.objects()}) == (1, {"create"})
    assert applied(one) == [(1, "created")]
    nothing = one.here("plan", "--exit-code")
    assert (nothing.code, nothing.out) == (0, "nothing to change\n")
    old = (tmp_path / "first.yaml").read_text()
    one.write("first.yaml", old.replace('size: "len(text)"', 'size: "len(text) + 1"'))
    changed = one.here("plan")
    assert changed.out.splitlines()[0].startswith("~ node      first/size")
    assert "1 to change" in changed.out
    assert applied(one) == [(2, "changed")]
    one.write("first.yaml", old)
    refused = one.here("--json", "run", "--pools", "none")
    assert (refused.code, refused.error()["code"]) == (3, "DX238")
    assert "dspex apply" in refused.error()["fix"]
    assert applied(one, "--yes") == [(3, "changed")]


def test_apply_builds_what_is_new_from_history_and_says_where_its_results_begin(
    tmp_path: Path, unique: str, nats_url: str
) -> None:
    one = project(tmp_path, unique, nats_url, "first")
    assert applied(one) == [(1, "created")]
    assert one.here("publish", f"{unique}.in", "text=hello").code == 0
    one.write("first.yaml", COUNTING.format(u=unique))
    nothing = one.here("--json", "apply", "--backfill", "0s")
    assert (nothing.code, nothing.error()["code"]) == (2, "DX105")
    (lane,) = [row for row in one.here("--json", "plan", "--backfill", "1d").objects() if row["kind"] == "lane"]
    (read,) = lane["after"]["sources"].values()
    assert (lane["name"], lane["after"]["operators"], read["events"]) == ("first/per_text", ["per_text"], 1)
    done = one.here("--json", "apply", "--backfill", "1d", "--yes")
    made, begins = done.objects()[-2:]
    assert (done.code, made["version"], begins["operators"], begins["events"]) == (0, 2, ["per_text"], 1)
    assert "no engine runs this version yet" in done.err
    again = one.here("--json", "apply", "--backfill", "1d")
    assert (again.code, again.error()["code"]) == (3, "DX245")


def test_a_plan_says_what_is_lost_and_apply_does_that_only_where_somebody_says_so(
    tmp_path: Path, unique: str, nats_url: str
) -> None:
    one = project(tmp_path, unique, nats_url, "first")
    one.write("first.yaml", ASKING.format(u=unique, node="ask", more=""))
    with one.start("run", "--pools", "none") as run:
        run.until("ready")
        assert one.here("publish", f"{unique}.in", "text=hello").code == 0
        one.write("first.yaml", ASKING.format(u=unique, node="other", more="drop: [ask]"))
        lost = eventually(lambda: [row for row in one.here("--json", "plan").objects() if not row["additive"]])
    assert [(row["op"], row["name"], row["before"]["open_calls"]) for row in lost] == [("delete", "first/ask", 1)]
    assert "- node      first/ask" in one.here("plan").out
    remote = one.here("--json", "run", "--pools", "none")
    assert (remote.code, remote.error()["code"]) == (3, "DX242")
    assert "gives up 1 open call" in remote.error()["message"]
    unsaid = one.here("--json", "apply")
    assert (unsaid.code, unsaid.error()["code"]) == (2, "DX136")
    assert applied(one, "--yes") == [(2, "changed")]
    assert one.here("plan", "--exit-code").code == 0
    one.write("first.yaml", ASKING.format(u=unique, node="third", more=""))
    undeclared = one.here("--json", "plan")
    assert (undeclared.code, undeclared.error()["code"]) == (3, "DX232")


def paused(one: Project, u: str) -> None:
    """What is published while a topology is paused is read when it goes on, and the other topology goes on meanwhile."""
    assert one.here("pause", "first").code == 0
    assert one.here("publish", f"{u}.in", "text=later").code == 0
    assert one.here("watch", f"{u}.second", "--start", "all", "--count", "2").code == 0
    assert eventually(lambda: one.here("--json", "pause", "first").objects()[0]["waiting"][0]["lag"] == 1)
    assert one.here("resume", "first").code == 0
    seen = one.here("--json", "watch", f"{u}.first", "--start", "all", "--count", "2").objects()
    assert [event["data"]["text"] for event in seen] == ["hello", "later"]


def test_deleting_one_topology_leaves_the_other_and_the_last_one_takes_the_streams(
    tmp_path: Path, unique: str, nats_url: str
) -> None:
    one = project(tmp_path, unique, nats_url, "first", "second")
    one.env["DSPEX_ENGINE__HEARTBEAT"] = "0.1"
    with one.start("run", "--pools", "none") as run:
        run.until("ready")
        assert one.here("publish", f"{unique}.in", "text=hello", "--wait").code == 0
        paused(one, unique)
        busy = one.here("--json", "delete", "first", "--yes")
        assert (busy.code, busy.error()["code"]) == (3, "DX240")
    assert one.here("delete", "first").code == 2
    unknown = one.here("--json", "delete", "third", "--yes")
    assert (unknown.code, unknown.error()["code"]) == (3, "DX235")
    (gone,) = one.here("--json", "delete", "first", "--yes").objects()
    assert (gone["whole"], gone["messages"] > 0) == (False, True)
    (status,) = one.here("--json", "status").objects()
    assert [stage["topology"] for stage in status["stages"]] == ["second"]
    (gone,) = one.here("--json", "delete", "second", "--yes").objects()
    assert gone["whole"]
    assert any(name.endswith("_sources") for name in gone["removed"])
    assert one.here("--json", "status").objects()[0]["stages"] == []


def test_pause_says_what_waits_and_refuses_what_cannot_be_paused(tmp_path: Path, unique: str, nats_url: str) -> None:
    one = project(tmp_path, unique, nats_url, "first")
    assert applied(one) == [(1, "created")]
    assert one.here("publish", f"{unique}.in", "text=hello").code == 0
    (said,) = one.here("--json", "pause", "first", "--until", "1h").objects()
    waiting = {"stage": "s1", "source": f"{unique}.in", "lag": 1, "open_calls": 0, "paused": True}
    assert (said["what"], said["paused"], said["until"] is not None, said["waiting"]) == ("first", True, True, [waiting])
    begins = f"one of: {unique}.in  or all of it: dspex pause first"
    for what, fix in (("second", "one of: first"), ("frist", "did you mean first?"), ("first/size", begins)):
        refused = one.here("--json", "pause", what)
        assert (refused.code, refused.error()["code"]) == (3, "DX235")
        assert refused.error()["fix"] == fix
    part = one.here("--json", "resume", f"first/{unique}.in")
    assert (part.code, part.error()["fix"]) == (2, "dspex resume first")
    assert one.here("resume", "first").out == "resumed first\n"
    text = one.here("pause", f"first/{unique}.in").out
    assert text == f"paused first/{unique}.in\n  first/s1 ({unique}.in): 1 event waits, 0 calls open\n"
    verbs = [row["verb"] for row in one.here("--json", "audit", "ls").objects()]
    assert verbs[-3:] == ["pause", "resume", "pause"]
    at_once = one.here("--json", "pause", "first", "--until", "0s")
    assert (at_once.code, at_once.error()["code"]) == (2, "DX105")
    assert one.here("pause", "first", "--until", "1ms").code == 0
    assert one.here("resume", f"first/{unique}.in").code == 0  # all of it was paused, and is not any more


def test_reset_of_an_operator_without_state_is_refused(tmp_path: Path, unique: str, nats_url: str) -> None:
    one = project(tmp_path, unique, nats_url, "first")
    for node, why in (("size", "keeps no state"), ("other", "is no operator of these topologies")):
        refused = one.here("--json", "apply", "--reset", node)
        assert (refused.code, refused.error()["message"]) == (2, f"--reset {node}: {node} {why}")
