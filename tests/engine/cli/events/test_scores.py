"""`dspex runs score` and `scores` as a shell sees them, on a real server with a running engine."""

from __future__ import annotations

import json

from cli_bench import Project


def publish(project: Project, *texts: str) -> list[str]:
    """The runs of texts, when they have ended."""
    found = project.publish("-", stdin="".join(f"{json.dumps({'text': text})}\n" for text in texts))
    return [one["run"] for one in found.objects()]


def test_a_run_is_scored_and_shown_and_listed_with_what_was_said(native: Project) -> None:
    good, other = publish(native, "abc", "abcd")
    for value in ("0.5", "0.75"):
        scored = native.here("--json", "runs", "score", good, "helpful", value, "--note", "as asked")
        assert (scored.code, scored.objects()[0]["value"], scored.objects()[0]["answered"]) == (0, float(value), [])
    assert "credited to nobody" in native.here("runs", "score", "@last", "helpful", "1").out
    infos = {info["id"]: info for info in native.here("--json", "runs", "ls", "--limit", "2").objects()}
    said = [(one["name"], one["value"], one["note"]) for one in infos[good]["scores"]]
    assert (said, len(infos[other]["scores"])) == ([("helpful", 0.75, "as asked")], 1)
    assert native.here("--json", "runs", "show", good).objects()[0]["scores"] == infos[good]["scores"]
    assert "score helpful 0.75  as asked  by " in native.here("runs", "show", good).out
    assert [one["value"] for one in native.here("--json", "runs", "scores", good).objects()] == [0.5, 0.75]
    (entry, *_) = native.here("--json", "audit", "ls", "--since", "1h").objects()[-1:]
    assert (entry["verb"], entry["what"]["run"], entry["what"]["value"]) == ("score", other, 1.0)
    assert native.here("--json", "runs", "score", good, "helpful", "--", "-1.5").objects()[0]["value"] == -1.5
    error = native.here("--json", "runs", "score", good, "helpful", "1", "--node", "classify").error()
    assert error["code"] == "DX622"


def test_without_scores_it_says_how_to_make_one(native: Project) -> None:
    assert native.here("runs", "scores", "--since", "0s").err.startswith("no scores: dspex runs score")
