"""Dead letters over HTTP and in the page: by what went wrong, run again at a pace, and dropped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_bench import Project
from gateway_bench import as_
from page_bench import is_there, published
from waiting import eventually


def failed(http: httpx.Client, project: Project, text: str, reason: str) -> tuple[str, dict[str, Any]]:
    """A run with a letter, and the group of that."""
    run = published(http, project, text)
    eventually(is_there(http, "/v1/letters", "letters", run))
    groups = http.get("/v1/letters/groups", headers=as_("looker")).json()["groups"]
    return run, next(one for one in groups if one["reason"] == reason)


def test_letters_that_say_the_same_of_other_events_are_one_group(http: httpx.Client, project: Project) -> None:
    failed(http, project, "standin:nonsense one", "InvalidOutput")
    _, group = failed(http, project, "standin:nonsense two", "InvalidOutput")
    assert group["count"] >= 2
    listed = http.get(f"/v1/letters?fingerprint={group['fingerprint']}", headers=as_("looker")).json()["letters"]
    assert len(listed) == group["count"]
    of = {"fingerprint": group["fingerprint"], "dry_run": True}
    counted = http.post("/v1/letters/redrive", json=of, headers=as_("operator")).json()
    assert (counted["count"], counted["redriven"]) == (group["count"], 0)
    first = http.post(
        "/v1/letters/drop", json={"fingerprint": group["fingerprint"], "limit": 1}, headers=as_("operator")
    ).json()
    assert (first["count"], first["dropped"]) == (group["count"], 1)


def test_letters_are_changed_by_who_may_act_and_never_all_by_mistake(http: httpx.Client) -> None:
    for path in ("/v1/letters/redrive", "/v1/letters/drop"):
        assert http.post(path, json={"node": "draft"}, headers=as_("looker")).status_code == 403, path
        for wrong in ({}, {"dry_run": True}, {"node": 5}, {"node": "draft", "limit": -1}, {"node": "draft", "dry_run": "no"}):
            assert http.post(path, json=wrong, headers=as_("operator")).status_code == 422, wrong
        assert http.post(path, json={"nod": "draft"}, headers=as_("operator")).status_code == 400
        assert http.post(path, json={"topology": "none"}, headers=as_("operator")).status_code == 404


@pytest.mark.long
def test_a_group_is_redriven_in_the_page_after_a_count_and_another_is_dropped(
    shown: Any, http: httpx.Client, project: Project, tmp_path: Path
) -> None:
    run, _ = failed(http, project, "standin:400x1 once", "LMRefused")
    shown.keyboard.press("2")
    shown.locator("tr[data-row]", has_text="LMRefused").first.click()
    shown.get_by_role("button", name="How many?").click()
    shown.get_by_text("would run again; nothing was done").wait_for()
    assert is_there(http, "/v1/letters", "letters", run)()
    shown.get_by_label("Letters a second").fill("1000")
    shown.screenshot(path=tmp_path / "redrive.png", full_page=True)
    shown.get_by_role("button", name="Redrive").click()
    shown.get_by_text(re.compile(r"\d+ of \d+ run again")).wait_for()  # and not by HTTP: its question is only answered here
    eventually(lambda: not is_there(http, "/v1/letters", "letters", run)())
    eventually(is_there(http, "/v1/approvals", "approvals", run))  # it went on where it had failed
    failed(http, project, "standin:nonsense drop me", "InvalidOutput")
    shown.locator("tr[data-row]", has_text="InvalidOutput").first.click()
    shown.get_by_role("heading", name="InvalidOutput").wait_for()
    shown.get_by_role("button", name="Drop").click()
    shown.locator("tr[data-row]", has_text="InvalidOutput").wait_for(state="detached")
