"""`dspex apply` and `dspex delete` on a real server."""

from __future__ import annotations

from pathlib import Path

from cli_bench import Project

NATIVE = """
dspex: 1
topology: {name}
sources: {{ {u}.in: {{}} }}
nodes:
  size: {{ from: {u}.in, set: {{ size: "len(text)" }} }}
sinks: {{ {u}.{name}: {{ from: size }} }}
"""


def project(folder: Path, unique: str, nats_url: str, *names: str) -> Project:
    files = ", ".join(f'"{name}.yaml"' for name in names)
    made = Project(folder, unique, f"topologies = [{files}]", NATS_URL=nats_url)
    for name in names:
        made.write(f"{name}.yaml", NATIVE.format(name=name, u=unique))
    return made


def test_a_version_that_was_replaced_can_be_applied_again_and_run(tmp_path: Path, unique: str, nats_url: str) -> None:
    one = project(tmp_path, unique, nats_url, "first")
    assert [row["version"] for row in one.here("--json", "apply").objects()] == [1]
    old = (tmp_path / "first.yaml").read_text()
    one.write("first.yaml", old.replace('size: "len(text)"', 'size: "len(text) + 1"'))
    assert [(row["version"], row["change"]) for row in one.here("--json", "apply").objects()] == [(2, "changed")]
    one.write("first.yaml", old)
    refused = one.here("--json", "run", "--pools", "none")
    assert (refused.code, refused.error()["code"]) == (3, "DX238")
    assert "dspex apply" in refused.error()["fix"]
    assert [row["version"] for row in one.here("--json", "apply", "--yes").objects()] == [3]
    with one.start("run", "--pools", "none") as run:
        run.until("ready")


def test_deleting_one_topology_leaves_the_other_and_the_last_one_takes_the_streams(
    tmp_path: Path, unique: str, nats_url: str
) -> None:
    one = project(tmp_path, unique, nats_url, "first", "second")
    with one.start("run", "--pools", "none") as run:
        run.until("ready")
        assert one.here("publish", f"{unique}.in", "text=hello", "--wait").code == 0
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


def test_reset_of_an_operator_without_state_is_refused(tmp_path: Path, unique: str, nats_url: str) -> None:
    one = project(tmp_path, unique, nats_url, "first")
    refused = one.here("--json", "apply", "--reset", "size")
    assert (refused.code, refused.error()["message"]) == (2, "--reset size: size keeps no state")
