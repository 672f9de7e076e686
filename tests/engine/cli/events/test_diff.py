"""`dspex diff` as a shell sees it."""

from __future__ import annotations

from cli_bench import Project

KEYS = ["same", "first", "steps", "tokens", "cost"]


def test_two_runs_are_compared_with_an_exit_code_for_continuous_integration(native: Project) -> None:
    runs = [one["run"] for one in native.publish("-", stdin='{"text":"abc"}\n{"text":"abcd"}\n{"text":"abc"}\n').objects()]
    same = native.here("--json", "diff", runs[0], runs[2])
    (said,) = same.objects()
    assert (same.code, list(said), said["same"], said["steps"]) == (0, KEYS, True, [])
    other = native.here("--json", "diff", "@last-2", "@last-1")
    (said,) = other.objects()
    assert (other.code, said["same"], said["first"]) == (
        1,
        False,
        {"step": f"{native.input}#0", "field": "text", "a": "abc", "b": "abcd"},
    )
    human = native.here("diff", runs[0], runs[1]).out.splitlines()
    assert human[0].startswith(f"a  …{runs[0][-8:]}  native ")
    assert human[-1] == "     size             3 → 4"
    assert native.here("diff", runs[0], runs[2]).out.splitlines()[-1] == "same"
    assert f"| `{native.output}#0` | size | 3 | 4 |" in native.here("diff", runs[0], runs[1], "--as", "markdown").out
    assert native.here("diff", runs[0], runs[1], "--fields", "urgency").code == 0
