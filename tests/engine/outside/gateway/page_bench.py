"""The web page in Chromium, as the tests of its views open it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_bench import Project
from gateway_bench import as_


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of this machine, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="scripts/setup dev installs it")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, project: Project, tmp_path: Path, who: str) -> Iterator[Any]:
    """The page, for who has a token; its picture is in the folder of the test. At the end nothing was wrong in it."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(60_000)
    wrong = list[str]()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{project.env['GATEWAY']}/ui")
    page.fill("#token", f"secret-{who}")
    page.keyboard.press("Enter")
    page.wait_for_selector("tbody, main .quiet:text('there is no run')")
    yield page
    page.screenshot(path=tmp_path / "last.png", full_page=True)
    page.close()
    assert wrong == [], wrong


@pytest.fixture
def shown(browser: Any, project: Project, tmp_path: Path) -> Iterator[Any]:
    """The page, for who may do all."""
    with opened(browser, project, tmp_path, "operator") as page:
        yield page


def published(http: httpx.Client, project: Project, text: str) -> str:
    said = http.post(f"/v1/publish/{project.input}", json={"text": text}, headers=as_("site")).json()
    return str(http.get(f"/v1/runs/{said['run']}", headers=as_("looker")).json()["id"])


def is_there(http: httpx.Client, path: str, what: str, run: str) -> Callable[[], bool]:
    return lambda: any(one["run"] == run for one in http.get(path, headers=as_("looker")).json()[what])
