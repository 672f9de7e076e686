"""Each view of the page, with messages of the demo, windows and approvals: light, dark and narrow, all fits and focus is seen.

Pictures of all of them are in the folder of the test, or in PICTURES: `PICTURES=/tmp/p pytest -k pictures`, to be looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_bench import Project, stand_in
from gateway_bench import COUNTS, SETTINGS, TOKENS, TOPOLOGY, as_
from page_bench import opened
from standin import StandIn
from waiting import eventually

from dspex.bus.local.launch import free_port

DEMO = '"dspex.topologies.support_triage:topology"'
LOOKS = ("light", "dark", "narrow", "narrow dark")
WIDE, NARROW = {"width": 1200, "height": 800}, {"width": 420, "height": 800}


class Shown:
    """An application with something in every view. `runs`: by what they are."""

    def __init__(self, project: Project, http: httpx.Client) -> None:
        self.project, self.http = project, http
        self.runs: dict[str, str] = {}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        said = self.http.request(method, path, json=body, headers=as_("operator"))
        assert said.status_code < 300, (path, said.text)
        return said.json()

    def publish(self, subject: str, event: Mapping[str, Any]) -> str:
        return str(self.ask("get", f"/v1/runs/{self.ask('post', f'/v1/publish/{subject}', event)['run']}")["id"])

    def over(self, run: str) -> bool:
        return bool(self.ask("get", f"/v1/runs/{run}")["status"] != "running")

    def fill(self) -> None:
        """The messages of the demo; approvals, some of them decided; letters of two kinds; windows, a session, a fork."""
        lines = files("dspex.topologies").joinpath("support_messages.jsonl").read_text().splitlines()
        messages = [{k: v for k, v in json.loads(line).items() if k != "intent"} for line in lines]
        demo = [self.publish("support.messages", message) for message in [*messages[:14], *messages[-2:]]]
        asked = [self.publish(self.project.input, {"text": message["text"]}) for message in messages[:5]]
        failed = [self.publish(self.project.input, {"text": f"standin:{why}"}) for why in ("400 a", "400 b", "nonsense c")]
        for second, who in enumerate(("Ann", "Ben", "Ann", "Cleo"), 1):
            self.publish(f"{self.project.u}.ticks", {"customer": who, "at": f"2026-01-01T00:00:0{second}Z"})
        for question in ("Where is my card?", "And when will it come?"):
            self.ask("post", "/v1/call/chat?session=ann", {"question": question})
        waits = eventually(lambda: (found := self.ask("get", "/v1/approvals")["approvals"]) and len(found) >= 5 and found)
        for one in [one for one in waits if one["run"] in asked[:2]]:
            self.ask("post", f"/v1/approvals/{one['id']}", {"decision": "accept"})
        eventually(lambda: all(self.over(run) for run in (*demo, *asked[:2], *failed)))
        change = {"at": "draft#0", "outputs": {"reply": "Your card is on its way."}}
        fork = self.ask("post", f"/v1/runs/{asked[0]}/fork", change)
        eventually(lambda: len(self.ask("get", "/v1/windows")["windows"]) == 3)
        self.runs = {"demo": demo[0], "decided": asked[0], "waiting": asked[-1], "failed": failed[0], "fork": fork["run"]}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[Shown]:
    with stand_in(StandIn()) as url:
        u, port = f"p{os.urandom(5).hex()}", free_port(None)
        settings = SETTINGS.replace('"counts.yaml"]', f'"counts.yaml", {DEMO}]')
        settings = settings.replace("slots = 4", 'slots = 4, programs = ["dspex.topologies.support_program:Classify"]')
        settings = settings.replace('"{u}.ticks"]', '"{u}.ticks", "support.messages"]')
        env = {**TOKENS, "HOOK_SECRET": "of the hook", "NATS_URL": nats_url, "GATEWAY": f"http://127.0.0.1:{port}"}
        project = Project(tmp_path_factory.mktemp("pictures"), u, settings.format(url=url, u=u), **env)
        project.write("support.yaml", TOPOLOGY.format(u=u))
        project.write("counts.yaml", COUNTS.format(u=u))
        with project.start("run", "--http", f"127.0.0.1:{port}") as run:
            run.until("ready in")
            with httpx.Client(base_url=project.env["GATEWAY"], timeout=60) as http:
                shown = Shown(project, http)
                shown.fill()
                yield shown
            assert run.end() == 0, run.errors()


def views(shown: Shown) -> dict[str, tuple[str, str]]:
    """The address of each view, and what is there once it is shown."""
    runs = shown.runs
    return {
        "runs": ("runs", f"[data-row='{runs['demo']}']"),
        "failed runs": ("runs?status=failed", f"[data-row='{runs['failed']}']"),
        **{f"run {name}": (f"runs/{runs[name]}", "main .tree details") for name in ("demo", "decided")},
        "run waiting": (f"runs/{runs['waiting']}", "main :text('it waits for somebody')"),
        "run failed": (f"runs/{runs['failed']}", "main .tree strong:text('LMRefused')"),
        "comparison": (f"runs/{runs['fork']}?with={runs['decided']}", "table.diff"),
        "letters": ("letters", ".card details"),
        "approvals": ("approvals", ".card button:text('Accept')"),
        "topology": ("topology", "svg.graph text.way"),
        "sessions": ("sessions", "[data-row='ann']"),
        "session": ("sessions/ann", "main :text('And when will it come?')"),
        "windows": ("windows", "main td:text('Cleo')"),
        "pools": ("pools", "main [role=img]"),
    }


@pytest.mark.long
@pytest.mark.parametrize("look", LOOKS)
def test_each_view_fits_and_shows_where_the_focus_is(browser: Any, filled: Shown, tmp_path: Path, look: str) -> None:
    folder = Path(os.environ.get("PICTURES", tmp_path))
    wrong = list[tuple[str, str]]()
    with opened(browser, filled.project, tmp_path, "operator") as page:
        page.emulate_media(color_scheme="dark" if "dark" in look else "light")
        page.set_viewport_size(NARROW if "narrow" in look else WIDE)
        for name, (place, there) in views(filled).items():
            page.goto(f"{filled.project.env['GATEWAY']}/ui/#/{place}")
            page.locator(there).first.wait_for()
            page.keyboard.press("j")
            page.evaluate("scrollTo(0, 0)")  # the head is at the top of what is shown, wherever that is
            page.screenshot(path=folder / f"{name} {look}.png".replace(" ", "-"), full_page=True)
            wrong += [(name, what) for what in page.evaluate(FAULTS)]
    assert wrong == []


# What nobody has to look at a picture for: something is wider than its place, a column is empty, or no focus is seen.
FAULTS = """() => {
  const found = [];
  for (const one of [document.scrollingElement, ...document.querySelectorAll(".wide")]) {
    if (one.scrollWidth > one.clientWidth) found.push(`wider than its place: ${one.textContent.slice(0, 80)}`);
  }
  for (const table of document.querySelectorAll("table:not(.diff)")) {
    const rows = [...table.tBodies[0].rows], heads = [...table.tHead.rows[0].cells];
    heads.filter((_, at) => rows.every((row) => !row.cells[at].textContent && !row.cells[at].childElementCount))
      .forEach((head) => found.push(`nothing is below ${head.textContent}`));
  }
  const at = document.activeElement, here = document.querySelector("nav a[aria-current]").getBoundingClientRect();
  const unseen = at.matches("[data-row]") && getComputedStyle(at).outlineStyle === "none";
  if (unseen) found.push(`no focus is drawn: ${at.outerHTML.slice(0, 80)}`);
  if (here.left < 0 || here.right > innerWidth) found.push("the view is not among those that the head shows");
  return found;
}"""
