"""What operators did, as `status` tells it of all engines: calls, retries, fallbacks and why, tokens, and letters that wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from engine_lab import APP, Lab
from structlog.testing import capture_logs

from dspex.bus import subjects
from dspex.bus.errors import CallTimeout, InvalidOutput, ProgramError
from dspex.bus.message import new_id
from dspex.engine.cli.figures import blocks
from dspex.engine.client.status import operators
from dspex.engine.client.status.rows import OperatorRow, Status
from dspex.engine.graph.nodes import Retry
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]
RETRY = Retry(attempts=2, backoff="5s", jitter=0.0)


def asking(name: str = "ask", **options: Any) -> Topology:
    topology = Topology("asking", **({"renamed_from": options.pop("renamed_from")} if "renamed_from" in options else {}))
    options = {"retry": RETRY, **options}
    topology.source("in").predict("text -> answer", name=name, **options).map(_not_bad, name="check").sink("out")
    return topology


def _not_bad(data: Any) -> Any:
    if data["answer"] == "bad":
        raise ValueError("bad")
    return data


def answer(inputs: dict[str, Any], request: Any) -> dict[str, Any]:
    """Of texts like "fail 2": fails in so many attempts, then answers with the first word."""
    word, _, times = inputs["text"].partition(" ")
    if request.attempt <= int(times or 0):
        raise ProgramError("no") if word == "broken" else CallTimeout("too slow")
    return {"answer": word}


def started(lab: MakeLab, topology: Topology, usage: dict[str, Any] | None = None) -> Lab:
    one = lab(topology)
    one.answers["ask"] = answer
    plain = one.record
    one.record = lambda request, **c: plain(request, elapsed=0.5 * request.attempt, usage=usage or {}, **c)  # type: ignore[method-assign]
    one.start()
    one.work()
    return one


def status(one: Lab) -> Status:
    one.advance(1.5)  # a heartbeat
    found: Status = one.run(one.client.status())
    return found


def row(one: Lab, node: str = "ask") -> OperatorRow:
    return next(o for o in status(one)["operators"] if o["node"] == node)


def test_each_execution_retry_fallback_and_token_of_an_operator_is_counted_once(lab: MakeLab) -> None:
    usage = {"input_tokens": 10, "output_tokens": 2, "cost": 0.25}
    one = started(lab, asking(fallback={"answer": "canned"}), usage)
    for text in ("good", "good", "slow 1", "slow 2", "bad"):
        one.publish("in", {"text": text})
    one.advance(30)
    ask, check = row(one), row(one, "check")
    assert (ask["events"], ask["calls"], ask["errors"], ask["retries"], ask["fallbacks"]) == (5, 7, 3, 2, 1)
    assert (ask["input_tokens"], ask["output_tokens"], ask["cost"], ask["p50"]) == (70, 14, 1.75, 0.5)
    assert (ask["why"], ask["pool"], ask["dead_letters"]) == ("CallTimeout: too slow", "lightweight", 0)
    assert (check["dead_letters"], check["calls"], check["pool"]) == (1, 0, None)
    assert [s["retries"] for s in status(one)["stages"]] == [2]


def test_the_figures_of_all_engines_are_one_row_and_an_operator_that_did_nothing_is_shown(lab: MakeLab) -> None:
    topology = Topology("asking")
    topology.source("in", partitions=2).predict("text -> answer", name="ask").sink("out")
    one = started(lab, topology)
    one.start("b")
    one.advance(10)
    assert (row(one)["calls"], row(one)["p50"], row(one)["cost"]) == (0, None, None)
    for n in range(10):
        one.publish("in", {"text": "good"}, key=str(n))

    async def calls(name: str) -> int:
        return sum(o["calls"] for o in one.hosts[name][0].describe()["operators"])

    each = [one.run(calls(name)) for name in "ab"]
    assert all(each)
    assert row(one)["calls"] == sum(each) == 10
    one.kill("a")
    one.advance(20)
    assert row(one)["calls"] == each[1]  # those of engines that are alive


def test_a_fallback_is_logged_with_its_reason_at_most_once_a_minute(lab: MakeLab) -> None:
    one = started(lab, asking(retry=Retry(attempts=1), fallback={"answer": "canned"}))
    with capture_logs() as logged:
        for _ in range(25):
            one.publish("in", {"text": "broken 9"})
            one.advance(5)
    told = [entry for entry in logged if entry["event"].startswith("a fallback")]
    assert [(t["node"], t["times"], t["why"], t["log_level"]) for t in told] == [
        ("ask", 1, "ProgramError: no", "warning"),
        ("ask", 12, "ProgramError: no", "warning"),
        ("ask", 12, "ProgramError: no", "warning"),
    ]


def test_a_call_that_nobody_answers_falls_back_and_says_that_its_deadline_passed(lab: MakeLab) -> None:
    one = lab(asking(deadline="20s", timeout="10s", fallback={"answer": "canned"}))
    one.start()  # without a worker
    one.publish("in", {"text": "good"})
    one.advance(10)
    (stage,) = status(one)["stages"]
    assert stage["lag"] == 0
    assert stage["oldest"] == pytest.approx(11.5, abs=1.5)  # it is read, and waits all the same
    one.advance(15)
    found = row(one)
    assert (found["events"], found["calls"], found["errors"], found["fallbacks"]) == (1, 0, 1, 1)
    assert found["why"].startswith("CallTimeout")
    assert [s["oldest"] for s in status(one)["stages"]] == [None]


def test_results_in_the_order_of_keys_are_shown_with_the_events_that_have_none(lab: MakeLab) -> None:
    one = started(lab, asking(order="key"))
    assert (row(one)["order"], row(one)["keyless"]) == ("key", 0)
    one.publish("in", {"text": "good"}, key="k")
    one.publish("in", {"text": "good"})
    assert (row(one)["order"], row(one)["keyless"]) == ("key", 1)
    (remark,) = [remark for block in blocks(status(one)) for remark in block.remarks]
    assert remark.startswith("asking/ask keeps results in the order of the events' keys: 1 of 2 had none, and those")
    assert "order" not in row(started(lab, asking()))


def test_dead_letters_that_wait_are_told_by_operator_and_reason_under_the_name_of_today(
    lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = started(lab, asking(retry=Retry(attempts=1)))
    for text in ("slow 9", "broken 9", "broken 9", "bad"):
        one.publish("in", {"text": text})
    one.advance(5)
    one.kill()
    one.start("b", asking("answer", renamed_from={"answer": "ask"}))
    waiting = [("answer", "ProgramError", 2), ("answer", "CallTimeout", 1), ("check", "DataError", 1)]
    assert [(r["node"], r["reason"], r["count"]) for r in status(one)["letters"]] == waiting
    assert all(r["oldest"] is not None and 5 <= r["oldest"] < 20 for r in status(one)["letters"])
    one.run(one.client.redrive([d for d in one.letters() if d.node == "check"]))
    one.run(one.client.bus.delete(subjects.stream(APP), one.letters()[0].sequence))
    assert [r["count"] for r in status(one)["letters"]][:1] == [2]
    for limit, value in (("LOOKED_AT", 1), ("SECONDS", -1.0)):
        with monkeypatch.context() as patched:
            patched.setattr(operators, limit, value)
            assert [(r["node"], r["count"]) for r in status(one)["letters"]][-1] == (None, sum(1 for _ in one.letters()) - 1)


def test_a_stage_tells_how_many_events_a_second_it_takes_of_late(lab: MakeLab) -> None:
    topology = Topology("quick")
    topology.source("in").map(lambda d: d, name="same").sink("out")
    one = lab(topology)
    one.start()
    for _ in range(40):
        one.publish("in", {"n": 1})
        one.advance(0.5)
    assert [s["rate"] for s in status(one)["stages"]] == [pytest.approx(2.0, rel=0.2)]
    one.advance(30)
    assert [s["rate"] for s in status(one)["stages"]] == [0.0]


@pytest.mark.parametrize(
    "wrong", [{"calls": -1}, {"p50": float("inf")}, {"cost": "much"}, {"node": 7}, {"events": 1.5}, {"why": None}, {}]
)
def test_a_heartbeat_whose_figures_no_engine_counts_is_left_out_and_harms_no_other(lab: MakeLab, wrong: Any) -> None:
    one = started(lab, asking())
    one.publish("in", {"text": "good"})
    one.advance(1.5)
    key = subjects.member_key("engine", "b")

    async def forge() -> None:
        bucket = await one.client.bus.bucket(subjects.bucket(APP))
        raw = (await bucket.items("engine"))[subjects.member_key("engine", "a")][0]
        said = orjson.loads(raw) | {"engine": "b"}
        said["operators"] = [{**said["operators"][0], **wrong}] if wrong else said["operators"] * 101
        body = orjson.dumps(said).replace(b'"p50":null', b'"p50":1e999') if "p50" in wrong else orjson.dumps(said)
        await bucket.put(key, body)

    one.run(forge())
    found = one.run(one.client.status())
    assert [e["engine"] for e in found["engines"]] == ["a"]
    assert [o["calls"] for o in found["operators"]] == [1]


def test_what_an_engine_tells_of_its_operators_stays_small_however_many_fail(lab: MakeLab) -> None:
    one = started(lab, asking(retry=Retry(attempts=1), fallback={"answer": "canned"}))

    def long(inputs: Any, request: Any) -> Any:
        raise InvalidOutput("x" * 10_000)

    one.answers["ask"] = long
    for _ in range(50):
        one.publish("in", {"text": new_id()})
    one.advance(1.5)

    async def size() -> int:
        bucket = await one.client.bus.bucket(subjects.bucket(APP))
        return len((await bucket.items("engine"))[subjects.member_key("engine", "a")][0])

    assert row(one)["fallbacks"] == 50
    assert one.run(size()) < 2500
