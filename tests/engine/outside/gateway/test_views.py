"""The list of runs, the topology, sessions, windows and pools in the page; each view is clicked through."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_bench import Project
from gateway_bench import as_
from page_bench import is_there, published
from waiting import eventually


def test_runs_are_paged_by_the_last_one_that_was_seen(http: httpx.Client, project: Project) -> None:
    runs = [published(http, project, f"page {number}") for number in range(4)]
    all_of_them = [one["id"] for one in http.get("/v1/runs?limit=1000", headers=as_("looker")).json()["runs"]]
    assert all_of_them[:4] == runs[::-1]
    paged = list[str]()
    while True:
        before = f"&before={paged[-1]}" if paged else ""
        found = http.get(f"/v1/runs?limit=2{before}", headers=as_("looker")).json()["runs"]
        paged += [one["id"] for one in found]
        if len(found) < 2:
            break
    assert paged == all_of_them
    assert http.get("/v1/runs?before=short", headers=as_("looker")).status_code == 404


def lists(said: httpx.Response) -> Iterator[dict[str, Any]]:
    return (json.loads(line[6:]) for line in said.iter_lines() if line.startswith("data: "))


def test_a_list_of_runs_tells_what_has_changed_and_nothing_else(http: httpx.Client, project: Project) -> None:
    published(http, project, "before the list")
    with http.stream("GET", "/v1/runs/events?limit=5", headers=as_("looker")) as said:
        told = lists(said)
        first = next(told)
        assert [one["id"] for one in first["runs"]] == first["order"]
        known = {one["id"]: one for one in first["runs"]}
        run = published(http, project, "while it is followed")
        while run not in known:
            said_then = next(told)
            for one in said_then["runs"]:  # others may have gone on meanwhile
                assert known.get(one["id"]) != one, "those that are as they were are not sent again"
                known[one["id"]] = one
        assert said_then["order"][0] == run
    with http.stream("GET", "/v1/runs/events?limit=5", headers=as_("looker")) as again:
        told = lists(again)
        then, now = next(told), next(told)
    assert (then["current"], then["order"][0]) == (False, run), "at once, what the other one has seen last"
    assert (now["current"], [one for one in now["runs"] if one in then["runs"]]) == (True, [])
    assert http.get("/v1/runs/events?before=x", headers=as_("looker")).status_code == 400
    assert http.get("/v1/runs/events", headers=as_("site")).status_code == 403


@pytest.mark.long
def test_filters_are_in_the_address_and_are_kept_by_name(shown: Any, http: httpx.Client, project: Project) -> None:
    run = published(http, project, "only this one runs")
    shown.get_by_label("Status").select_option("running")
    shown.wait_for_url("**/ui/#/runs?status=running")
    shown.locator(f"[data-row='{run}']").wait_for()
    shown.get_by_role("button", name="Save filter").click()
    shown.get_by_label("Name of this filter").fill("at work")
    shown.keyboard.press("Enter")
    shown.get_by_role("link", name="Runs", exact=True).click()
    shown.reload()
    shown.get_by_role("link", name="at work").click()
    shown.wait_for_url("**/ui/#/runs?status=running")
    shown.locator(f"[data-row='{run}']").wait_for()
    assert shown.get_by_label("Status").input_value() == "running"
    shown.get_by_role("button", name="Forget at work").click()
    assert shown.evaluate("localStorage.getItem('dspex.filters')") == "[]"


@pytest.mark.long
def test_the_topology_is_drawn_with_what_operators_take_and_rate_and_cost_on_its_edges(
    shown: Any, http: httpx.Client, project: Project, tmp_path: Path
) -> None:
    published(http, project, "costs something")
    eventually(is_there(http, "/v1/letters", "letters", published(http, project, "standin:400 is refused")))
    shown.keyboard.press("4")
    drawn = shown.locator("svg.graph[aria-label='The topology']", has_text="classify")
    drawn.locator("text.way", has_text="$0.0").first.wait_for()
    drawn.locator("text.way", has_text="/s").first.wait_for()
    drawn.locator("text", has_text=re.compile(r"^predict, \d+ dead$")).first.wait_for()
    drawn.locator("text", has_text=re.compile(r"^\d+(\.\d)? (µs|ms) each$")).first.wait_for()
    assert {"classify", "check", "draft"} <= set(drawn.locator("text").all_text_contents())
    shown.screenshot(path=tmp_path / "topology.png")


@pytest.mark.long
def test_a_session_is_found_and_what_was_said_in_it_is_read(
    shown: Any, http: httpx.Client, project: Project, tmp_path: Path
) -> None:
    asked = http.post("/v1/call/chat?session=viewed", json={"question": "is anybody there?"}, headers=as_("operator"))
    assert asked.status_code == 200, asked.text
    shown.keyboard.press("5")
    shown.locator("[data-row='viewed']").click()
    shown.get_by_text("answer of is anybody there?").wait_for()
    shown.screenshot(path=tmp_path / "session.png")
    for path in ("/v1/sessions", "/v1/sessions/viewed", "/v1/windows"):
        assert http.get(path, headers=as_("site")).status_code == 403, path
        assert http.get(f"{path}?odd=1", headers=as_("looker")).status_code == 400, path
    assert http.get("/v1/sessions/nobody", headers=as_("looker")).status_code == 404


@pytest.mark.long
def test_open_windows_are_shown_with_what_they_have_and_who_holds_the_watermark(
    shown: Any, http: httpx.Client, project: Project, tmp_path: Path
) -> None:
    for second in (1, 2):
        tick = {"customer": "Ann", "at": f"2026-01-01T00:00:0{second}Z"}
        said = http.post(f"/v1/publish/{project.u}.ticks", json=tick, headers=as_("operator"))
        assert said.status_code == 202, said.text

    def windows() -> Any:
        return http.get("/v1/windows", headers=as_("looker")).json()["windows"]

    eventually(lambda: [one["value"] for one in windows()] == [2])
    assert (windows()[0]["key"], windows()[0]["node"]) == ("Ann", "minutes")
    shown.keyboard.press("6")
    shown.get_by_role("cell", name="Ann").wait_for()
    shown.get_by_role("cell", name="by_customer").first.wait_for()
    shown.screenshot(path=tmp_path / "windows.png")


@pytest.mark.long
def test_pools_and_budgets_are_shown_as_numbers_and_as_bars(shown: Any, tmp_path: Path) -> None:
    shown.keyboard.press("7")
    shown.get_by_role("cell", name="lightweight").first.wait_for()
    shown.get_by_role("img", name="slots are busy").first.wait_for()
    shown.get_by_role("img", name="of $50.00").first.wait_for()
    assert shown.locator("svg.line polyline").count() >= 1
    shown.emulate_media(color_scheme="dark")
    shown.screenshot(path=tmp_path / "pools.png", full_page=True)
