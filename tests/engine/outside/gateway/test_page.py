"""The web page: people find a run, read what it did, decide, and see what failed; nothing of an event becomes markup."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_bench import Project
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gateway_bench import TOKENS, as_
from page_bench import is_there, published
from starlette.applications import Starlette
from waiting import eventually

import dspex
from dspex.asgi import app
from dspex.bus.local.launch import free_port
from dspex.engine.gateway.web import page as served

MARKUP = "<img src=x onerror=document.title='broken'>"
SCRIPTS = sorted(f.stem for f in Path(served.__file__).parent.glob("*.js"))
INLINE = re.compile("<(?P<kind>style|script)(?P<said>[^>]*)>(?P<text>.*?)</(?P=kind)>", re.DOTALL)


def test_a_run_is_found_and_read_without_a_mouse(shown: Any, http: httpx.Client, project: Project, tmp_path: Path) -> None:
    run = published(http, project, f"read me {MARKUP}")
    eventually(is_there(http, "/v1/approvals", "approvals", run))
    shown.wait_for_selector(f"[data-row='{run}']")  # it comes by itself
    shown.screenshot(path=tmp_path / "runs.png")
    shown.keyboard.press("/")
    shown.keyboard.type(run[-8:])
    shown.keyboard.press("Escape")
    shown.keyboard.press("j")
    shown.keyboard.press("Enter")
    shown.wait_for_selector(f"h2:has-text('{run}')")
    call = shown.locator("details", has_text="classify#0")
    call.locator("summary").press("Enter")
    call.get_by_text("Outputs").wait_for()
    assert MARKUP in call.inner_text()
    assert "urgency" in call.inner_text()
    assert "[[ ## kind ## ]]" in call.locator(".turn.answer").inner_text(), "what the model said"
    assert "Your input fields are:" in call.locator(".turn").first.inner_text(), "what it was asked"
    assert shown.locator("main img").count() == 0
    assert shown.title().startswith("dspex")
    shown.screenshot(path=tmp_path / "run.png", full_page=True)
    shown.keyboard.press("Escape")
    shown.wait_for_selector(f"[data-row='{run}']")


def test_a_person_edits_and_accepts_in_the_page(shown: Any, http: httpx.Client, project: Project, tmp_path: Path) -> None:
    run = published(http, project, "a first word")
    shown.keyboard.press("3")
    card = shown.locator(".card", has_text="a first word")
    card.get_by_role("button", name="Edit").click()
    card.locator("textarea").fill('{"text": "a better word"}')
    shown.screenshot(path=tmp_path / "approvals.png")
    card.get_by_role("button", name="Accept").click()
    found = http.get(f"/v1/runs/{run}?wait=30s&outputs=true", headers=as_("looker")).json()
    assert (found["status"], found["outputs"][0]["data"]["reply"]) == ("done", "reply of a better word")


def test_what_is_cancelled_while_somebody_looks_at_it_says_so(shown: Any, http: httpx.Client, project: Project) -> None:
    runs = [published(http, project, text) for text in ("nobody wants this", "somebody else does")]
    for run in runs:
        eventually(is_there(http, "/v1/approvals", "approvals", run))
    shown.keyboard.press("3")
    for run in runs:
        shown.locator(f".card[data-run='{run}']").wait_for()
    http.post(f"/v1/runs/{runs[0]}/cancel", headers=as_("operator")).raise_for_status()
    found = http.get("/v1/approvals", headers=as_("looker")).json()["approvals"]
    (other,) = [one["id"] for one in found if one["run"] == runs[1]]
    http.post(f"/v1/approvals/{other}", json={"decision": "reject"}, headers=as_("operator")).raise_for_status()
    said = [shown.locator("main p.quiet", has_text=f"run {run[-8:]}: ") for run in runs]
    assert "cancelled with its run" in said[0].inner_text()
    assert "decided by somebody else" in said[1].inner_text()


@pytest.mark.long
def test_dead_letters_open_by_group_and_lead_to_their_run(
    shown: Any, http: httpx.Client, project: Project, tmp_path: Path
) -> None:
    run = published(http, project, "standin:400 fail")
    eventually(is_there(http, "/v1/letters", "letters", run))
    shown.keyboard.press("2")
    shown.locator("tr[data-row]", has_text="LMRefused").first.click()
    card = shown.locator(".card", has_text=run[-8:])
    card.wait_for()
    shown.screenshot(path=tmp_path / "letters.png", full_page=True)
    card.locator("a").click()
    shown.wait_for_selector(f"h2:has-text('{run}')")
    assert shown.locator(".facts .failed").first.inner_text() == "failed"


def test_a_token_that_is_not_valid_is_asked_for_again_and_one_that_may_not_read_is_told(browser: Any, project: Project) -> None:
    page = browser.new_page()
    page.goto(f"{project.env['GATEWAY']}/ui/")
    for token in ("secret-nobody", "secret-site"):
        page.fill("#token", token)
        page.keyboard.press("Enter")
        if token == "secret-nobody":
            page.get_by_text("This token is not valid.").wait_for()
    page.get_by_role("alert").get_by_text("this token may not read").wait_for()
    assert page.evaluate("localStorage.length") == 0
    page.close()


def test_the_page_works_below_a_path_and_asks_nobody_else(
    project: Project, monkeypatch: pytest.MonkeyPatch, http: httpx.Client
) -> None:
    for name, value in {**TOKENS, "HOOK_SECRET": "of the hook", "NATS_URL": project.env["NATS_URL"]}.items():
        monkeypatch.setenv(name, value)
    outer, inner = FastAPI(), app(dspex.Settings.load(project.folder))
    outer.mount("/ai", inner)
    with TestClient(outer, base_url="http://localhost") as client:
        assert client.get("/ai/ui").url.path == "/ai/ui/"
        said = client.get("/ai/ui/")
        assert said.status_code == 200
        assert not re.search(r"""(src|href|from|import|fetch\()\s*[=(]?\s*["'`](/|https?:)""", said.text)
        assert client.get("/ai/ui/page.py").status_code == 404
        assert client.get("/ai/ui/..%2fapp.py").status_code == 404


def test_no_script_but_that_of_the_page_may_run_and_no_other_page_may_frame_it(http: httpx.Client) -> None:
    said = http.get("/ui/")
    policy = dict(part.strip().split(" ", 1) for part in said.headers["content-security-policy"].split(";"))
    sums = {
        kind: f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
        for kind, _, text in INLINE.findall(said.text)[:2]
    }
    assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
    assert (policy["script-src"], policy["style-src"]) == (sums["script"], sums["style"]), "what is in it, and nothing else"
    assert "unsafe" not in said.headers["content-security-policy"]
    assert said.headers["x-content-type-options"] == "nosniff"
    assert said.headers["referrer-policy"] == "no-referrer"
    assert [kept for _, kept, _ in INLINE.findall(said.text)] == ["", ' type="module"', ' type="application/json" id="first"']
    assert not re.search(r"\son[a-z]+=|\sstyle=|\s(src|href)=(?!\"(#|data:,))", INLINE.sub("", said.text)), (
        "it asks for nothing more"
    )


def test_each_script_of_the_page_is_in_it_once_and_behind_those_that_it_stands_on() -> None:
    text = served.bundle("app")
    order = re.findall(r"^const of_(\w+) = ", text, re.MULTILINE)
    assert sorted(order) == SCRIPTS
    assert order.index("base") < order.index("values") < order.index("runs") < order.index("app")
    assert not re.search(r"^(import|export)\b", text, re.MULTILINE)


def first(text: str) -> Any:
    """The list that is in the page."""
    return json.loads(INLINE.findall(text)[-1][-1])


def test_the_page_has_the_list_of_runs_in_it_for_who_may_see_it_without_a_token(
    project: Project, monkeypatch: pytest.MonkeyPatch, http: httpx.Client
) -> None:
    run = published(http, project, "in the page")
    assert first(http.get("/ui/").text) is None, "with tokens it is the same for everybody"
    assert first(http.get("/ui/", headers=as_("looker")).text) is None
    for name, value in {"HOOK_SECRET": "of the hook", "NATS_URL": project.env["NATS_URL"]}.items():
        monkeypatch.setenv(name, value)
    settings = dspex.Settings.load(project.folder).model_copy(update={"calls": {}})
    with TestClient(app(settings), base_url="http://localhost") as client:
        listed = client.get("/v1/runs").json()["runs"]
        said = client.get("/ui/")
        assert said.headers["cache-control"] == "no-store"
        assert run in first(said.text)["order"]
        assert [one["id"] for one in first(said.text)["runs"]] == [one["id"] for one in listed]
        assert first(client.get("/ui/", headers={"X-Forwarded-For": "10.0.0.1"}).text) is None, "asked through a proxy"
        assert first(client.get("/ui/", headers={"Host": "elsewhere.example"}).text) is None


def test_no_text_of_a_run_ends_the_element_that_its_list_lies_in() -> None:
    listed = json.dumps({"order": [f"</script>{MARKUP}<!--"]})
    with TestClient(Starlette(routes=served.routes(lambda _: listed))) as client:
        text = client.get("/ui/").text
    assert (first(text), MARKUP in text) == (json.loads(listed), False)


def test_without_tokens_runs_are_shown_before_anything_more_is_answered(
    browser: Any, project: Project, http: httpx.Client, tmp_path: Path
) -> None:
    run, port = published(http, project, "at once"), free_port(None)
    open_to_all = Project(tmp_path, project.u, "", NATS_URL=project.env["NATS_URL"])
    with open_to_all.start("ui", "--port", str(port)) as ui:
        address = ui.until("/ui/").split()[1]
        assert run in [one["id"] for one in httpx.get(f"http://127.0.0.1:{port}/v1/runs").json()["runs"]]
        page = browser.new_page()
        page.route("**/v1/**", lambda route: None)  # asked for, and never answered
        page.goto(address)
        page.locator(f"[data-row='{run}']").wait_for()
        assert page.evaluate("performance.getEntriesByType('resource').filter((one) => !one.name.includes('/v1/')).length") == 0
        page.unroute_all(behavior="ignoreErrors")
        page.close()
        assert ui.end() == 0


def test_dead_letters_and_topologies_are_seen_by_who_may_read(http: httpx.Client) -> None:
    for path in ("/v1/letters", "/v1/topologies"):
        assert (http.get(path, headers=as_("site")).status_code, http.get(path).status_code) == (403, 401), path
    assert http.get("/v1/letters?topology=*.>", headers=as_("looker")).status_code == 404
    assert http.get("/v1/letters?limit=x", headers=as_("looker")).status_code == 400
    found = next(
        one for one in http.get("/v1/topologies", headers=as_("looker")).json()["topologies"] if one["name"] == "support"
    )
    assert found["nodes"]["check"] == {"op": "approve", "from": ["classify"]}


def test_the_command_serves_the_page_to_this_machine_and_prints_its_address(project: Project) -> None:
    port = free_port(None)
    with project.start("ui", "--port", str(port)) as ui:
        line = ui.until("/ui/")
        assert line.split() == ["page", f"http://127.0.0.1:{port}/ui/"]
        assert "<title>dspex</title>" in httpx.get(line.split()[1]).text
        assert ui.end() == 0
