"""The page's first content: from the address until rows of the list of runs are shown, with a stream of a million messages.

    scripts/bench page [--messages 1000000] [--rounds 5] [--json] [--store FOLDER]

runs.py and stored.py say what lies there. `shown` is what Chromium tells, in a tab that has nothing of the page yet: how long
from the begin of the navigation until the first row is in the document. Where there is no Chromium it is how long
the page takes to be sent, which has the list in it. `cpu` is the gateway's for one opening.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts of that folder import each other by name

import httpx
import psutil
from arguments import positive
from calling.processes import module, running

from dspex.bus.local.launch import free_port
from history import stored
from history.runs import stream

GOAL = 200  # milliseconds until something is shown
_FIRST_ROW = """new MutationObserver((_, it) => {
  if (window.shown || !document.querySelector("tbody tr")) return;
  window.shown = performance.now();
  it.disconnect();
}).observe(document, { childList: true, subtree: true })"""
_ASKED = """performance.getEntriesByType("resource").map((one) =>
  ({ name: one.name.split("/").pop(), began: one.startTime, ended: one.responseEnd }))"""

Opening = Callable[[], Awaitable[dict[str, Any]]]


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """What each opening took."""
    async with AsyncExitStack() as left:
        temporary = left.enter_context(tempfile.TemporaryDirectory())
        url, _ = await left.enter_async_context(stream(args.store or Path(temporary), args.messages))
        bind = f"127.0.0.1:{free_port(None)}"
        variables = {"DSPEX_SETTINGS_JSON": stored.settings(url, temporary).to_json()}
        serve = running(module("dspex", "--json", "gateway", "--bind", bind), variables, ready=bind, folder=temporary)
        gateway = psutil.Process(await left.enter_async_context(serve))
        chromium = shutil.which("chromium")
        opening = await _browser(left, chromium, bind) if chromium else _requests(bind)
        found = [await _measured(opening, gateway) for _ in range(args.rounds + 1)]
    return {"chromium": bool(chromium), "first": found[0], "openings": found[1:]}


async def _measured(opening: Opening, gateway: psutil.Process) -> dict[str, Any]:
    before = gateway.cpu_times()
    found = await opening()
    after = gateway.cpu_times()
    return {**found, "cpu": round(1000 * (after.user + after.system - before.user - before.system))}


async def _browser(left: AsyncExitStack, chromium: str, bind: str) -> Opening:
    """Opening the page in a tab of its own."""
    from playwright.async_api import async_playwright

    playwright = await left.enter_async_context(async_playwright())
    browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    left.push_async_callback(browser.close)

    async def opened() -> dict[str, Any]:
        context = await browser.new_context(viewport={"width": 1200, "height": 800})
        page = await context.new_page()
        await page.add_init_script(_FIRST_ROW)
        await page.goto(f"http://{bind}/ui/")
        await page.wait_for_selector("tbody tr")
        found = {"shown": await page.evaluate("window.shown"), "asked": await page.evaluate(_ASKED)}
        await context.close()
        return found

    return opened


def _requests(bind: str) -> Opening:
    """Asking for what the page asks for."""

    async def asked() -> dict[str, Any]:
        began = time.perf_counter()
        async with httpx.AsyncClient(base_url=f"http://{bind}", timeout=60) as http:
            (await http.get("/ui/")).raise_for_status()
        return {"shown": 1000 * (time.perf_counter() - began), "asked": []}

    return asked


def table(figures: Mapping[str, Any]) -> list[str]:
    """The lines for people."""
    openings, first = figures["openings"], figures["first"]
    shown, cpu = ([one[name] for one in openings] for name in ("shown", "cpu"))
    how = "in Chromium" if figures["chromium"] else "by requests alone: there is no Chromium here"
    lines = [f"first content {how}, {len(openings)} openings (goal: {GOAL} ms)", ""]
    for name, took, more in (("shown", shown, f"the very first {first['shown']:.0f} ms"), ("cpu", cpu, "of the gateway")):
        lines.append(f"{name:<8} median {statistics.median(took):>6.0f} ms   worst {max(took):>6.0f} ms   {more}")
    lines += ["", f"{'asked for':<32}{'began':>8}{'ended':>8}  ms, of the middle one"]
    middle = sorted(openings, key=lambda one: one["shown"])[len(openings) // 2]
    lines += [f"{one['name'][:31]:<32}{one['began']:>8.0f}{one['ended']:>8.0f}" for one in middle["asked"]]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=positive, default=1_000_000)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--store", type=Path, help="a folder that keeps the stream, for another time")
    parser.add_argument("--json", action="store_true", help="an object instead of tables")
    args = parser.parse_args()
    figures = asyncio.run(measure(args))
    print(json.dumps(figures) if args.json else "\n".join(table(figures)))
    return int(statistics.median(one["shown"] for one in figures["openings"]) > GOAL)


if __name__ == "__main__":
    sys.exit(main())
