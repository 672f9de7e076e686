"""`dspex replay` as a shell sees it: all that a topology did, again, with the code of today."""

from __future__ import annotations

import pytest
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
    first = said["diverged"]
    assert (first["step"], first["field"]) == (f"{native.output}#0", "size")
    assert first["b"] == first["a"] + 1
    assert said["places"][0]["place"].startswith("s1.0@")
    assert "graph" in said["builds"]
    assert (
        native.here("--json", "replay", "--topology", "native", "--with", str(other), "--until", "2026-01-01T00:00:00Z").code
        == 0
    )


def test_what_cannot_be_replayed_says_so(native: Project) -> None:
    assert native.here("--json", "replay", "--topology", "nativ").error()["code"] == "DX235"
    assert native.here("--json", "replay").error()["code"] == "DX105"
    assert native.here("--json", "replay", "--topology", "native", "--mode", "lively").error()["code"] == "DX105"
    assert native.here("--json", "replay", "--topology", "native", "--pdb").error()["code"] == "DX105"


def test_one_run_is_replayed_and_others_are_not_looked_at(native: Project) -> None:
    first, second = (one["run"] for one in native.publish("-", stdin='{"text":"abc"}\n{"text":"abcd"}\n').objects())
    (said,) = native.here("--json", "replay", first).objects()
    assert (said["same"], said["runs"], said["what"]) == (True, 1, first)
    changed = NATIVE.format(u=native.input.removesuffix(".in")).replace('"len(text)"', '"min(len(text), 3)"')
    other = str(native.write("least.yaml", changed))
    assert native.here("replay", first, "--with", other).code == 0
    found = native.here("--json", "replay", second, "--with", other)
    assert (found.code, found.error()["code"]) == (6, "DX801")
    (said,) = found.objects()
    assert said["diverged"] == {"step": f"{native.output}#0", "field": "size", "a": 4, "b": 3}
    assert (said["run"], said["places"][0]["runs"], "explain" in said) == (second, [second], False)
    assert f"at {native.output}#0 (size) of run …{second[-8:]}" in found.error()["message"]
    people = native.here("replay", second, "--with", other).out.splitlines()
    assert [line.split() for line in people if "first difference" in line] == [
        ["size", "4", "→", "3", "←", "first", "difference"]
    ]


def test_the_causes_of_the_first_difference_are_explained_then_and_now(native: Project) -> None:
    (run,) = (one["run"] for one in native.publish("text=abcd").objects())
    three = longer(native, 3)
    (said,) = native.here("--json", "replay", run, "--explain", "--with", three).objects()
    labels = {name: [one["label"] for one in way] for name, way in said["explain"].items()}
    assert labels == {
        "then": [native.input, native.output],
        "now": [native.input, "check#0", "count#0", native.output],
    }
    lines = native.here("replay", run, "--explain", "--with", three).out.splitlines()
    now = lines[lines.index("now:") + 1 :]
    assert now[2].strip() == '└─ ~ count#0  {"text":"abcd","size":3}'
    only = "long: { from: check, filter: 'len(text) > 4' }\n  count: { from: long,"
    text = NATIVE.format(u=native.u).replace("count: { from: check,", only)
    drops = str(native.write("drops.yaml", text))
    (said,) = native.here("--json", "replay", run, "--explain", "--with", drops).objects()
    assert (said["diverged"]["step"], said["diverged"]["b"]) == (f"{native.output}#0", "nothing")
    last = said["explain"]["now"][-1]
    assert (last["label"], last["note"]) == ("long#0", "dropped")


def test_where_calls_may_be_made_it_says_what_comes_of_it(native: Project) -> None:
    (one,) = native.publish("-", stdin='{"text":"abcd"}\n').objects()
    found = native.here("--json", "replay", one["run"], "--with", longer(native, 3), "--mode", "hybrid")
    (said,) = found.objects()
    assert (found.code, said["same"], said["mode"], said["runs"], said["live"]) == (0, False, "hybrid", 1, 0)
    assert (said["diverged"]["a"], said["diverged"]["b"]) == (4, 3)
    (all_of_it,) = native.here("--json", "replay", "--topology", "native", "--mode", "live").objects()
    assert (all_of_it["same"], all_of_it["tokens"]) == (True, 0)
    assert all_of_it["runs"] >= 1
    wrong = native.here("--json", "replay", "--topology", "native", "--partition", "s1/0", "--mode", "live")
    assert wrong.error()["code"] == "DX105"


def longer(native: Project, most: int) -> str:
    """Other code: it counts up to `most` only."""
    changed = NATIVE.format(u=native.input.removesuffix(".in")).replace('"len(text)"', f'"min(len(text), {most})"')
    return str(native.write(f"most{most}.yaml", changed))


def test_the_runs_of_a_session_are_replayed_and_no_others(native: Project) -> None:
    for text, session in (("abc", "s-1"), ("abcdef", "s-2"), ("abcd", "s-1")):
        assert native.publish(f"text={text}", "--session", session).code == 0
    (said,) = native.here("--json", "replay", "--session", "s-1").objects()
    assert (said["same"], said["runs"], said["what"]) == (True, 2, "session s-1")
    five = longer(native, 5)
    assert native.here("replay", "--session", "s-1", "--with", five).code == 0
    assert native.here("replay", "--session", "s-2", "--with", five).code == 6
    (said,) = native.here("--json", "replay", "--session", "s-2", "--topology", "native", "--since", "1h").objects()
    assert said["runs"] == 1
    assert native.here("--json", "replay", "--session", "s-2", "--until", "2026-01-01T00:00:00Z").error()["code"] == "DX622"


def test_the_runs_of_a_range_of_the_source_are_replayed_and_no_others(native: Project) -> None:
    at = [native.here("--json", "publish", native.input, f"text={text}").objects()[0]["seq"] for text in ("abc", "abcdef")]
    native.publish("text=abcd")
    at.append(at[1] + 1)
    (said,) = native.here("--json", "replay", "--range", f"{at[0]}:{at[2]}").objects()
    assert (said["same"], said["runs"]) == (True, 3)
    five = longer(native, 5)
    assert native.here("replay", "--range", f"{at[0]}:{at[0]}", "--with", five).code == 0
    assert native.here("replay", "--range", f"{at[1]}:{at[1]}", "--topology", "native", "--with", five).code == 6
    assert native.here("--json", "replay", "--range", "900000:900001").error()["code"] == "DX622"


def test_one_partition_is_replayed_by_its_stage_or_by_what_it_begins_at(native: Project) -> None:
    native.publish("text=abc")
    for stage in ("s1", native.input):
        (said,) = native.here("--json", "replay", "--topology", "native", "--partition", f"{stage}/0").objects()
        assert said["same"]
    error = native.here("--json", "replay", "--topology", "native", "--partition", "s1/3").error()
    assert (error["code"], error["fix"]) == ("DX235", "those that have: 0")
    assert f"s1 ({native.input})" in native.here("replay", "--topology", "native", "--partition", "s9/0").err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["@last", "--since", "1d"], "RUN and --since do not go together"),
        (["@last", "--session", "s"], "RUN and --session do not go together"),
        (["--session", "s", "--partition", "s1/0"], "--session and --partition"),
        (["--range", "1:2", "--since", "1d"], "--range and --since"),
        (["--file", "x", "--topology", "native"], "--file and --topology"),
        (["--since", "1d"], "nothing says what is to be replayed"),
        (["--range", "5:2"], "is no range of sequences"),
        (["--topology", "native", "--partition", "s1"], "is no partition"),
        (["--topology", "native", "--until", "noon"], "is no time"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(native: Project, options: list[str], why: str) -> None:
    error = native.here("--json", "replay", *options).error()
    assert (error["code"], why in error["message"]) == ("DX105", True), error
