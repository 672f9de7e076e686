"""`dspex replay` as a shell sees it: all that a topology did, again, with the code of today."""

from __future__ import annotations

from cli_bench import NATIVE, Project


def test_what_a_topology_did_is_replayed_and_is_the_same(native: Project) -> None:
    native.publish("-", stdin='{"text":"abc"}\n{"text":"x"}\n{"text":"abcd"}\n')
    found = native.here("--json", "replay", "--topology", "native")
    (said,) = found.objects()
    assert (found.code, said["same"], said["diverged"], said["live"], said["tokens"]) == (0, True, None, 0, 0)
    assert said["runs"] >= 3
    assert native.here("replay", "--topology", "native").out.splitlines()[-1] == "same"


def test_code_that_gives_something_else_is_told_with_where_and_what(native: Project) -> None:
    native.publish("-", stdin='{"text":"abc"}\n')
    changed = NATIVE.format(u=native.input.removesuffix(".in")).replace('"len(text)"', '"len(text) + 1"')
    other = native.write("other.yaml", changed)
    found = native.here("--json", "replay", "--topology", "native", "--with", str(other))
    (said,) = found.objects()
    assert (found.code, said["same"], found.error()["code"]) == (6, False, "DX801")
    assert said["diverged"]["step"].startswith("s1.0@")
    assert '"size":4' in said["diverged"]["b"]
    assert '"size":3' in said["diverged"]["b"]
    assert "graph" in said["builds"]
    assert (
        native.here("--json", "replay", "--topology", "native", "--with", str(other), "--until", "2026-01-01T00:00:00Z").code
        == 0
    )


def test_what_cannot_be_replayed_says_so(native: Project) -> None:
    assert native.here("--json", "replay", "--topology", "nativ").error()["code"] == "DX235"
    assert native.here("--json", "replay").error()["code"] == "DX105"
    assert native.here("--json", "replay", "@last", "--since", "1d").error()["code"] == "DX105"
    assert native.here("--json", "replay", "--topology", "native", "--mode", "live").error()["code"] == "DX108"
    assert native.here("--json", "replay", "--topology", "native", "--pdb").error()["code"] == "DX108"


def test_one_run_is_replayed_and_others_are_not_looked_at(native: Project) -> None:
    first, second = (one["run"] for one in native.publish("-", stdin='{"text":"abc"}\n{"text":"abcd"}\n').objects())
    (said,) = native.here("--json", "replay", first).objects()
    assert (said["same"], said["runs"], said["what"]) == (True, 1, first)
    changed = NATIVE.format(u=native.input.removesuffix(".in")).replace('"len(text)"', '"min(len(text), 3)"')
    other = str(native.write("least.yaml", changed))
    assert native.here("replay", first, "--with", other).code == 0
    found = native.here("--json", "replay", second, "--with", other)
    assert (found.code, found.error()["code"]) == (6, "DX801")
    assert '"size":4' in found.objects()[0]["diverged"]["b"]
