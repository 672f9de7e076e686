"""Runs over HTTP: found, followed and come back to, decided about, scored and cancelled, each by who may."""

from __future__ import annotations

import json
from typing import Any

import httpx
from cli_bench import Project
from gateway_bench import as_
from standin import StandIn
from waiting import eventually


def published(http: httpx.Client, project: Project, text: str) -> str:
    """The full id of the run of an event."""
    said = http.post(f"/v1/publish/{project.input}", json={"text": text}, headers=as_("site")).json()
    return str(http.get(f"/v1/runs/{said['run']}", headers=as_("looker")).json()["id"])


def waiting(http: httpx.Client, run: str) -> list[Any]:
    listed = http.get("/v1/approvals", headers=as_("looker")).json()["approvals"]
    return [one for one in listed if one["run"] == run]


def decide(http: httpx.Client, run: str, **said: Any) -> httpx.Response:
    eventually(lambda: waiting(http, run))
    return http.post(f"/v1/approvals/{waiting(http, run)[0]['id']}", json=said, headers=as_("operator"))


def events(said: httpx.Response) -> list[tuple[str, str, Any]]:
    found, kind, id = list[tuple[str, str, Any]](), "", ""
    for line in said.iter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            id = value
        elif name == "event":
            kind = value
        elif name == "data":
            found.append((id, kind, json.loads(value)))
    return found


def test_a_run_waits_for_a_decision_and_ends_with_it(http: httpx.Client, project: Project) -> None:
    run = published(http, project, "please decide")
    assert decide(http, run, decision="accept", note="fine").status_code == 200
    found = http.get(f"/v1/runs/{run}?wait=30s&tree=true&outputs=true", headers=as_("looker")).json()
    assert (found["status"], found["calls"], found["topology"]) == ("done", 2, "support")
    decided = [one["who"] for one in project.here("--json", "audit", "ls").objects() if one["verb"] == "decide"]
    assert decided[-1].endswith(" for operator")
    assert found["outputs"][0]["data"]["reply"] == "reply of please decide"
    kinds = {found["tree"]["kind"], *(one["kind"] for one in found["tree"]["below"])}
    assert {"source", "call"} <= kinds
    listed = http.get("/v1/runs?status=done&limit=5", headers=as_("looker")).json()["runs"]
    assert run in [one["id"] for one in listed]


def test_the_events_of_a_run_go_on_where_they_were_left(http: httpx.Client, project: Project) -> None:
    run = published(http, project, "follow me")
    decide(http, run, decision="accept")
    with http.stream("GET", f"/v1/runs/{run}/events", headers=as_("looker")) as said:
        whole = events(said)
    assert [(kind, data.get("id")) for _, kind, data in whole] == [("step", "classify#0"), ("step", "draft#0"), ("run", run)]
    with http.stream("GET", f"/v1/runs/{run}/events", headers={**as_("looker"), "Last-Event-ID": whole[0][0]}) as said:
        rest = events(said)
    assert rest == whole[1:]
    wrong = http.get(f"/v1/runs/{run}/events", headers={**as_("looker"), "Last-Event-ID": "-; drop"})
    assert wrong.status_code == 422


def test_a_run_is_scored_and_cancelled_by_who_may(http: httpx.Client, project: Project, model: StandIn) -> None:
    run = published(http, project, "standin:hang cancel me")
    eventually(lambda: model.running == 1)
    assert http.post(f"/v1/runs/{run}/cancel", headers=as_("looker")).status_code == 403
    said = http.post(f"/v1/runs/{run}/cancel", headers=as_("operator"))
    assert (said.status_code, said.json()["status"]) == (200, "cancelled"), said.text
    eventually(lambda: model.running == 0)
    scored = http.post(f"/v1/runs/{run}/scores", json={"name": "helpful", "value": 0.5}, headers=as_("operator"))
    assert (scored.status_code, scored.json()["value"]) == (201, 0.5), scored.text
    for body in (
        {"name": "helpful"},
        {"name": "helpful", "value": True},
        {"name": 5, "value": 1},
        {"name": "a", "value": 1, "note": 5},
    ):
        assert http.post(f"/v1/runs/{run}/scores", json=body, headers=as_("operator")).status_code == 422


def test_runs_are_seen_by_who_may_read_or_knows_the_whole_id(http: httpx.Client, project: Project) -> None:
    run = published(http, project, "whose run")
    assert http.get(f"/v1/runs/{run}", headers=as_("site")).status_code == 200
    for path in ("/v1/runs", f"/v1/runs/{run[-8:]}", "/v1/approvals", "/v1/status", "/metrics"):
        assert http.get(path, headers=as_("site")).status_code == 403, path
        assert http.get(path, headers=as_("nobody")).status_code == 401, path
    assert http.get(f"/v1/runs/{run[-8:]}", headers=as_("old")).json()["id"] == run  # OPERATOR_TOKEN has two
    assert http.get("/v1/runs/00000000-0000-7000-8000-000000000000", headers=as_("looker")).status_code == 404
    assert http.get("/v1/runs?status=odd", headers=as_("looker")).status_code == 400
    assert http.get("/v1/runs?limit=0", headers=as_("looker")).status_code == 400


def test_a_wrong_decision_is_refused_and_changes_nothing(http: httpx.Client, project: Project) -> None:
    run = published(http, project, "not yet")
    for body in ({}, {"decision": "maybe"}, {"decision": "accept", "edit": 5}):
        assert decide(http, run, **body).status_code == 422
    assert http.post("/v1/approvals/ffffffffffff", json={"decision": "accept"}, headers=as_("operator")).status_code == 409
    assert waiting(http, run)


def test_probes_need_no_token_and_status_is_that_of_the_application(http: httpx.Client, project: Project) -> None:
    assert (http.get("/livez").status_code, http.get("/readyz").json()) == (200, {"status": "ok"})
    found = http.get("/v1/status", headers=as_("looker")).json()
    assert found["server"]["app"] == project.u
    assert [pool["pool"] for pool in found["pools"]] == ["lightweight"]


def test_a_cancelled_run_waits_for_nobody_any_more_and_who_decides_is_told(http: httpx.Client, project: Project) -> None:
    run = published(http, project, "nobody will decide")
    eventually(lambda: waiting(http, run))
    (asked,) = waiting(http, run)
    said = http.post(f"/v1/runs/{run}/cancel", headers=as_("operator"))
    assert said.status_code == 200, said.text
    eventually(lambda: http.get(f"/v1/runs/{run}", headers=as_("looker")).json()["status"] == "cancelled")
    assert waiting(http, run) == []
    late = http.post(f"/v1/approvals/{asked['id']}", json={"decision": "accept"}, headers=as_("operator"))
    assert (late.status_code, "was cancelled with its run" in late.json()["detail"]) == (409, True), late.text
