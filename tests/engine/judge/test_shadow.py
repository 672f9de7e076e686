"""`dspex shadow`: a candidate beside what comes in now, on a real server, with a stand-in for the model's server."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_bench import NATIVE, Project, objects, stand_in
from standin import StandIn

from dspex.bus.local.server import LocalServer
from dspex.engine.judge.shadow import in_sample

TOPOLOGY = """
dspex: 1
topology: triage
sources: {{ {u}.in: {{}} }}
nodes:
  ask: {{ from: {u}.in, filter: "{filter}" }}
  draft: {{ from: ask, predict: "{draft}", retry: {{ attempts: 1 }} }}
sinks: {{ {u}.out: {{ from: draft }} }}
"""
SETTINGS = """
topologies = ["triage.yaml"]
lm.main = {{ model = "openai/stand-in", base_url = "{url}", price = {{ input = 1.0, output = 2.0 }} }}
"""


class Live(Project):
    """A project whose topology runs. `model`: the stand-in."""

    model: StandIn

    def candidate(self, name: str, filter: str = "n >= 0", draft: str = "text -> reply") -> str:
        return self.write(f"{name}.yaml", TOPOLOGY.format(u=self.u, filter=filter, draft=draft))

    def runs(self, *texts: str) -> list[str]:
        """The runs of events, when they have ended."""
        rows = [{"text": text, "n": n} for n, text in enumerate(texts)]
        return [row["run"] for row in self.publish("-", stdin="".join(f"{json.dumps(row)}\n" for row in rows)).objects()]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[Live]:
    model = StandIn()
    with stand_in(model) as url:
        one = Live(tmp_path_factory.mktemp("shadow"), f"s{os.urandom(5).hex()}", SETTINGS.format(url=url), NATS_URL=nats_url)
        one.model = model
        one.candidate("triage")
        with one.start("run") as run:
            run.until("ready")
            yield one
            assert run.end() == 0, run.errors()


def test_runs_that_end_now_are_compared_with_a_candidate_and_nothing_is_sent(live: Live) -> None:
    before = live.runs("before it began")
    more = live.candidate("more", filter="n != 1", draft="text -> reply, tone")
    with live.start("--json", "shadow", more, "--sample", "100%") as shadow:
        shadow.until('"begun"')
        runs = live.runs("a", "b", "c")
        for run in runs:
            shadow.until(run)
        assert shadow.end(signal.SIGINT) == 0, shadow.errors()
        found = {one["run"]: one for one in objects("\n".join(shadow.lines)) if one["kind"] == "compared"}
        (last,) = (one for one in objects("\n".join(shadow.lines)) if one["kind"] == "shadow")
    assert set(found) == set(runs)
    assert before[0] not in found
    assert (found[runs[0]]["same"], found[runs[0]]["first"]["field"], found[runs[0]]["called"]) == (False, "tone", 1)
    gone = [(s["step"], s["b"]) for s in found[runs[1]]["steps"] if s["field"] is None]
    assert gone[0] == ("draft#0", "nothing")
    assert (last["sampled"], last["compared"], last["differ"], last["waiting"], last["skipped"]) == (3, 3, 3, 0, {})
    assert (last["called"], last["tokens"] > 0, last["cost"] > 0) == (2, True, True)
    told = live.here("--json", "watch", live.output, "--start", "all", "--count", "4").objects()
    assert len(told) == 4  # what was sent is what ran


@pytest.mark.long
def test_the_same_is_the_same_and_pays_nothing(live: Live) -> None:
    with live.start("--json", "shadow", "triage.yaml", "--sample", "100%", "--until", "1h") as shadow:
        shadow.until('"begun"')
        asked = live.model.stats()["requests"]
        (run,) = live.runs("as ever")
        shadow.until(run)
        assert shadow.end(signal.SIGTERM) == 0, shadow.errors()  # as a service manager ends it
        _, found, last = objects("\n".join(shadow.lines))
    assert (found["kind"], found["same"], found["called"]) == ("compared", True, 0)
    assert (last["differ"], live.model.stats()["requests"]) == (0, asked + 1)


def test_a_budget_and_a_time_end_it_with_a_summary(live: Live) -> None:
    more = live.candidate("again", draft="text -> reply, mood")
    done = live.here("shadow", "triage.yaml", "--until", "0.1s")
    assert (done.code, done.out.splitlines()[0]) == (
        0,
        "0 runs, 0 sampled, 0 compared, 0 differ  0 calls read back, 0 made  0 tokens  $0.0000",
    )
    with live.start("--json", "shadow", more, "--sample", "1", "--budget", "0") as shadow:
        shadow.until('"begun"')
        (run,) = live.runs("x")
        shadow.until('"stopped":"the budget')
        _, skipped, last = objects("\n".join(shadow.lines))
    assert (skipped["kind"], skipped["run"], last["stopped"]) == ("skipped", run, "the budget of 0 tokens is spent")


@pytest.mark.long
@pytest.mark.asyncio
async def test_it_goes_on_when_the_server_comes_back(tmp_path: Path) -> None:
    server = LocalServer(tmp_path / "js", port=None)
    await server.start()
    one = Project(tmp_path, "back", 'topologies = ["native.yaml"]', NATS_URL=server.url)
    one.write("native.yaml", NATIVE.format(u=one.u))
    one.write("longer.yaml", NATIVE.format(u=one.u).replace('"len(text)"', '"len(text) + 1"'))
    publish = ["--json", "publish", one.input, "text=abcd", "--wait", "60s"]
    try:
        with one.start("run", "--pools", "none") as run:
            run.until("ready")
            with one.start("--json", "shadow", "longer.yaml", "--sample", "100%") as shadow:
                shadow.until('"begun"')
                shadow.until(one.dspex(*publish).objects()[0]["run"])
                await server.stop()
                await server.start()
                shadow.until(one.dspex(*publish).objects()[0]["run"])
                assert shadow.end(signal.SIGINT) == 0, shadow.errors()
                last = objects(shadow.lines[-1])[0]
        assert (last["seen"], last["compared"], last["differ"], last["skipped"]) == (2, 2, 2, {})
    finally:
        await server.stop()


def test_a_sample_is_the_same_everywhere_and_grows_with_its_share() -> None:
    runs = [f"run {n}" for n in range(10_000)]
    few, many = ({run for run in runs if in_sample(run, share)} for share in (0.05, 0.2))
    assert 400 < len(few) < 600
    assert few < many
    assert {run for run in runs if in_sample(run, 1.0)} == set(runs)


@pytest.mark.parametrize(
    ("args", "said"),
    [(["--sample", "0%"], "no share"), (["--sample", "many"], "no share"), (["--until", "soon"], "does not say when")],
)
def test_what_says_no_sample_and_no_time_is_refused(live: Live, args: list[str], said: str) -> None:
    assert said in live.here("--json", "shadow", "triage.yaml", *args).error()["message"]
