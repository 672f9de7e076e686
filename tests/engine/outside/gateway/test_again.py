"""A run is done again over HTTP and in the page: replayed by who may read, forked by who may act, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_bench import Project
from gateway_bench import as_
from page_bench import opened, published
from standin import StandIn
from waiting import eventually


@pytest.fixture
def decided(http: httpx.Client, project: Project) -> str:
    """A run that is over."""
    run = published(http, project, "a card for me")

    def waiting() -> list[str]:
        listed = http.get("/v1/approvals", headers=as_("looker")).json()["approvals"]
        return [one["id"] for one in listed if one["run"] == run]

    eventually(waiting)
    http.post(f"/v1/approvals/{waiting()[0]}", json={"decision": "accept"}, headers=as_("operator"))
    assert http.get(f"/v1/runs/{run}?wait=30s", headers=as_("looker")).json()["status"] == "done"
    return run


def test_who_may_read_replays_a_run_and_no_model_is_asked(http: httpx.Client, decided: str, model: StandIn) -> None:
    asked = model.texts["a card for me"]
    said = http.post(f"/v1/runs/{decided}/replay", json={}, headers=as_("looker"))
    assert said.status_code == 200, said.text
    found = said.json()
    assert (found["same"], found["live"], found["tokens"], found["diff"]["steps"]) == (True, 0, 0, [])
    assert model.texts["a card for me"] == asked > 0
    assert http.post(f"/v1/runs/{decided}/replay", json={"mode": "live"}, headers=as_("looker")).status_code == 400
    assert http.post(f"/v1/runs/{decided}/replay", json={}, headers=as_("site")).status_code == 403


def test_a_fork_needs_the_right_to_act_and_is_delivered_only_if_asked(http: httpx.Client, decided: str) -> None:
    change = {"at": "draft#0", "outputs": {"reply": "a better one"}}
    assert http.post(f"/v1/runs/{decided}/fork", json=change, headers=as_("looker")).status_code == 403
    said = http.post(f"/v1/runs/{decided}/fork", json=change, headers=as_("operator"))
    assert said.status_code == 201, said.text
    made = said.json()
    assert (made["parent"], made["delivered"], made["diff"]["steps"][-1]["b"]) == (decided, False, "a better one")
    diff = http.get(f"/v1/runs/{decided}/diff?with={made['run']}", headers=as_("looker")).json()
    assert [(one["step"], one["field"]) for one in diff["steps"]][-1][1] == "reply"
    assert "classify#0" in diff["equal"]
    for wrong in ({"at": "draft#0"}, {**change, "lm": "main"}, {**change, "odd": 1}, {**change, "mode": "all"}):
        assert http.post(f"/v1/runs/{decided}/fork", json=wrong, headers=as_("operator")).status_code == 400, wrong
    for wrong in ({}, {"at": 5}, {"at": "draft#0", "outputs": "text"}, {**change, "deliver": "yes"}, {**change, "mode": 1}):
        assert http.post(f"/v1/runs/{decided}/fork", json=wrong, headers=as_("operator")).status_code == 422, wrong


def test_a_fork_makes_no_call_in_mode_strict_and_all_of_the_run_in_mode_live(
    http: httpx.Client, decided: str, model: StandIn
) -> None:
    change, asked = {"at": "draft#0", "outputs": {"reply": "a better one"}}, model.stats()["requests"]
    path, who = f"/v1/runs/{decided}/fork", as_("operator")
    assert http.post(path, json={**change, "mode": "strict"}, headers=who).status_code == 201
    other = {"at": "draft#0", "inputs": {"text": "another card"}, "mode": "strict"}
    said = http.post(path, json=other, headers=who)
    assert (said.status_code, said.json()["error"]["code"]) == (409, "DX801"), said.text
    assert model.stats()["requests"] == asked
    assert http.post(path, json={**change, "mode": "live"}, headers=who).status_code == 201
    assert model.stats()["requests"] > asked


@pytest.mark.long
def test_a_run_is_replayed_forked_and_compared_in_the_page(shown: Any, project: Project, decided: str, tmp_path: Path) -> None:
    shown.goto(f"{project.env['GATEWAY']}/ui/#/runs/{decided}")
    shown.get_by_role("button", name="Replay").click()
    shown.get_by_role("status").get_by_text("same", exact=True).wait_for()
    shown.get_by_role("button", name="Fork…").click()
    shown.get_by_label("Where").select_option("draft#0")
    shown.get_by_label("Fields to change, as JSON").fill('{"reply": "another word"}')
    shown.get_by_label("Calls that are made").select_option("none")
    shown.screenshot(path=tmp_path / "fork.png")
    shown.get_by_role("button", name="Make the fork").click()
    shown.locator("table.diff mark", has_text="another word").first.wait_for()
    shown.screenshot(path=tmp_path / "diff.png")
    shown.locator(".again p a").click()
    shown.get_by_text("fork of").wait_for()
    shown.get_by_role("button", name="Compare").click()
    shown.locator("table.diff mark", has_text="another word").first.wait_for()
    shown.reload()
    shown.locator("table.diff mark", has_text="another word").first.wait_for()
    assert f"?with={decided}" in shown.url, "a bookmark keeps the comparison"


@pytest.mark.long
def test_the_page_shows_what_a_fork_leads_to_in_other_runs(
    shown: Any, http: httpx.Client, project: Project, tmp_path: Path
) -> None:
    def named(number: int) -> str:
        event = {"name": "Ann", "number": number}
        said = http.post(f"/v1/publish/{project.u}.names", json=event, headers=as_("operator")).json()
        return str(http.get(f"/v1/runs/{said['run']}?wait=30s", headers=as_("looker")).json()["id"])

    first, second = named(1), named(2)  # of the second one nothing comes, since the name is known
    shown.goto(f"{project.env['GATEWAY']}/ui/#/runs/{first}")
    shown.get_by_role("button", name="Fork…").click()
    shown.get_by_label("What is changed").select_option("inputs")
    shown.get_by_label("Fields to change, as JSON").fill('{"name": "Ben", "number": 1}')
    shown.get_by_role("button", name="Make the fork").click()
    later = shown.locator("section", has_text="Later, in other runs")
    row = later.locator("tr", has_text=second[-8:])
    row.locator("[data-side='with the change'] mark", has_text="Ann").wait_for()
    assert (row.locator("strong").inner_text(), row.locator("[data-side='as it was']").inner_text()) == (
        f"{project.u}.firsts",
        "nothing",
    )
    shown.screenshot(path=tmp_path / "later.png", full_page=True)
    shown.emulate_media(color_scheme="dark")
    shown.set_viewport_size({"width": 420, "height": 800})
    shown.screenshot(path=tmp_path / "later-narrow-dark.png", full_page=True)
    assert shown.evaluate("document.scrollingElement.scrollWidth") <= 420
    fork = str(shown.locator(".again p a").first.get_attribute("href")).removeprefix("#/runs/")
    shown.goto(f"{project.env['GATEWAY']}/ui/#/runs/{first}?with={fork}")
    shown.reload()
    later.locator("tr", has_text=second[-8:]).wait_for()  # it is kept, and seen by who compares them afterwards


@pytest.mark.long
def test_a_read_only_token_is_told_that_it_may_not_fork(browser: Any, project: Project, decided: str, tmp_path: Path) -> None:
    with opened(browser, project, tmp_path, "looker") as page:
        page.goto(f"{project.env['GATEWAY']}/ui/#/runs/{decided}")
        page.get_by_role("button", name="Fork…").click()
        page.get_by_label("Where").select_option("draft#0")
        page.get_by_label("Fields to change, as JSON").fill('{"reply": "x"}')
        page.get_by_role("button", name="Make the fork").click()
        page.get_by_role("alert").get_by_text("this token may not operate").wait_for()
        assert page.locator("table.diff").count() == 0
