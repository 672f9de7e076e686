"""One mistake has one code, whichever door it comes in by: settings, the command line, topologies, tests, packages."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_bench import in_this_process

import dspex
from dspex.bus import codecs
from dspex.bus.errors import DspexError
from dspex.bus.settings.duration import seconds
from dspex.bus.settings.model import Settings
from dspex.engine.testing.driver import Driver
from dspex.operators.native.lm.endpoint import Endpoint
from dspex.operators.topology import Topology

CORPUS = Path(__file__).parents[1] / "engine/cli/publishing/corpus"


def typed(*args: str, stdin: str = "") -> Callable[[], str]:
    """The code that a command answers."""
    return lambda: str(in_this_process("--json", *args, stdin=stdin).error()["code"])


def raised(use: Callable[[], object]) -> Callable[[], str]:
    def code() -> str:
        with pytest.raises(DspexError) as caught:
            use()
        return caught.value.code

    return code


def yaml(text: str) -> Callable[[], object]:
    def load() -> None:
        Path("t.yaml").write_text(f"dspex: 1\ntopology: t\n{text}\nsinks: {{ out: {{ from: ask }} }}\n")
        Topology.load("t.yaml").freeze()

    return load


def called(**options: object) -> Callable[[], object]:
    def freeze() -> None:
        topology = Topology("t")
        topology.source("in").predict("text -> a", name="ask", **options).sink("out")  # type: ignore[arg-type]
        topology.freeze()

    return freeze


def driven(use: Callable[[Driver], object]) -> Callable[[], object]:
    def run() -> None:
        topology = Topology("t")
        topology.source("in").predict("text -> a", name="ask").sink("out")
        with Driver(topology) as d:
            use(d)

    return run


NODE = "sources: {{ in: {{}} }}\nnodes: {{ ask: {{ from: in, predict: 'text -> a', {0} }} }}"
PARQUET, ARROW = (str(CORPUS / name) for name in ("columns/plain.parquet", "arrow/stream.arrow"))
DOORS: dict[str, tuple[str, list[Callable[[], str]]]] = {
    "a duration outside of topologies": (
        "DX102",
        [
            typed("call", "text -> a", "text=x", "--timeout", "soon"),
            raised(lambda: Settings.load(engine__heartbeat="soon")),
            raised(lambda: Settings.load(defaults__call__timeout="soon")),
            raised(driven(lambda d: d.advance("soon"))),
            raised(driven(lambda d: d.answer("ask", {}, after="soon"))),
            raised(lambda: seconds("soon")),
        ],
    ),
    "a value of an option in a topology": (
        "DX205",
        [
            raised(called(timeout="soon")),
            raised(called(retry=dspex.Retry(backoff="soon"))),
            raised(called(adapter="yaml")),
            raised(yaml(NODE.format("timeout: soon"))),
            raised(yaml(NODE.format("retry: { backoff: soon }"))),
            raised(yaml("retention: soon\n" + NODE.format("adapter: chat"))),
        ],
    ),
    "a value that is not one of those there are": (
        "DX105",
        [
            typed("server", "start", "--port", "x"),
            typed("show", "--as", "pictures"),
            typed("call", "text -> a", "text=x", "--route", "dspy"),
            typed("publish", "in", "a=b", "--rate", "fast"),
            typed("publish", "in", "a=b", "--header", "x"),
            typed("watch", "in", "--start", "soon"),
            typed("--color", "pink", "status"),
            raised(lambda: Settings.load(defaults__call__adapter="yaml")),
            raised(lambda: Settings.load(pools__a__size=-1)),
            raised(lambda: Settings.load(server__url="ht tp://x")),
            raised(lambda: Endpoint("nonsense")),
            raised(driven(lambda d: d.outputs("misspelt"))),
            raised(driven(lambda d: d.calls("misspelt"))),
            raised(driven(lambda d: d.fail("misspelt", ValueError()))),
        ],
    ),
    "what is no JSON": (
        "DX120",
        [
            typed("publish", "in", "{a}"),
            typed("publish", "in", "a:={x"),
            typed("publish", "in", "-f", "rows.jsonl"),
            typed("publish", "in", "-f", "-", stdin="{a}\n"),
            typed("publish", "in", "-", stdin="{a}\n"),
        ],
    ),
    "a word that is no option": ("DX100", [typed("watch", "in", "--form", "x"), typed("wach", "in"), typed("-q", "--yes")]),
}


@pytest.mark.parametrize("mistake", DOORS)
@pytest.mark.usefixtures("no_settings")
def test_a_mistake_has_one_code_at_all_its_doors(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dspex.toml").write_text('app = "shop"\n')
    Path("rows.jsonl").write_text("{a}\n")
    code, doors = DOORS[mistake]
    assert [door() for door in doors] == [code] * len(doors)


def test_a_package_that_is_not_installed_has_one_code_wherever_it_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    columns = "dspex.operators.native.metrics.columns"
    monkeypatch.delitem(sys.modules, columns, raising=False)
    doors = [
        typed("publish", "in", "-f", PARQUET),
        typed("publish", "in", "-f", ARROW),
        raised(lambda: codecs.encode({}, "arrow")),
        raised(lambda: importlib.import_module(columns)),
    ]
    assert [door() for door in doors] == ["DX109"] * len(doors)
