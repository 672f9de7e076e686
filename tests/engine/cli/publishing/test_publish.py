"""`dspex publish` as a shell sees it, on a real server with a running engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cli_bench import Project

from dspex.bus import nats
from dspex.bus.local.server import LocalServer
from dspex.bus.port import StreamConfig

RECEIPT = ["run", "subject", "stream", "seq", "duplicate"]


def test_a_published_event_is_stored_and_the_same_id_is_one_event(native: Project) -> None:
    first, second = (native.here("--json", "publish", native.input, "text=hello", "--id", "order-1") for _ in range(2))
    assert (first.code, second.code) == (0, 0), first.err
    (a,), (b,) = first.objects(), second.objects()
    assert list(a) == RECEIPT
    stream = f"DSPEX_{native.u}_sources"
    place = {"subject": native.input, "stream": stream, "seq": a["seq"]}
    assert a == {"run": f"{stream}@{a['seq']}", **place, "duplicate": False}
    assert b == a | {"duplicate": True}
    human = native.here("publish", native.input, "text=hello", "--key", "k", "--session", "s", "--header", "Tenant=acme")
    assert human.out.startswith("run ")
    (seen,) = native.here("--json", "watch", native.input, "--start", str(a["seq"] + 1), "--count", "1").objects()
    assert (seen["key"], seen["session"], seen["headers"]["Tenant"]) == ("k", "s", "acme")


def test_publish_with_wait_shows_the_runs_outputs_and_fails_when_it_fails(native: Project) -> None:
    good = native.publish("text=hello")
    assert good.code == 0, good.err
    (run,) = good.objects()
    assert list(run) == [*RECEIPT, "status", "outputs", "calls", "usage"]
    assert run["outputs"] == [{"subject": native.output, "data": {"text": "hello", "size": 5}}]
    assert (run["status"], run["calls"]) == ("done", 0)
    none = {"input_tokens": 0, "output_tokens": 0, "cost": None, "cached_tokens": 0, "finish": "", "requests": 0}
    assert run["usage"] == none
    bad = native.here("publish", native.input, "text=x", "--wait", "60s")
    assert bad.code == 1
    assert "failed in" in bad.out
    assert "check: InvalidInput" in bad.err


def test_an_event_that_waits_is_stored_at_once_and_its_outputs_come_when_its_time_has_come(native: Project) -> None:
    waited = native.publish("text=later", "--after", "300ms")
    (run,) = waited.objects()
    assert (waited.code, run["status"]) == (0, "done"), waited.err
    assert run["outputs"] == [{"subject": native.output, "data": {"text": "later", "size": 5}}]
    (seen,) = native.here("--json", "watch", native.input, "--start", str(run["seq"]), "--count", "1").objects()
    assert seen["headers"]["Dspex-At"] == "+0.3"
    assert native.publish("text=past", "--at", "2026-01-31T09:00:00+01:00").code == 0


USERS = """
accounts { A { jetstream: enabled, users: [
  { user: all, password: p }
  { user: few, password: p, permissions: { publish: "orders.in", subscribe: "_INBOX.>" } }
] } }
no_auth_user: all
"""


@pytest.mark.asyncio
async def test_who_may_not_read_what_comes_of_an_event_hears_that_it_is_stored(tmp_path: Path, unique: str) -> None:
    """Who published it again, as after any other error, would double it."""
    project = Project(tmp_path, unique, NATS_USER="few", NATS_PASSWORD="p")
    async with LocalServer(tmp_path / "server" / "js", port=None, extra_config=USERS) as server:
        bus = await nats.connect(server.url)
        await bus.ensure_stream(StreamConfig("ORDERS", ["orders.in"]))
        done = await asyncio.to_thread(project.dspex, "--server", server.url, "publish", "orders.in", "n=1", "--wait", "60s")
        info = await bus.stream("ORDERS")
        await bus.close()
    assert (done.code, info.last if info else 0) == (4, 1)
    assert "stored in ORDERS as 1, and its run goes on: do not publish again" in done.err


def test_a_file_published_twice_is_stored_once(native: Project, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,n\n" + "".join(f'"row, {i}",{i}\n' for i in range(1000)))
    first = native.publish("-f", str(file), "source=test")
    assert first.code == 0, first.err
    runs = first.objects()
    assert [r["seq"] for r in runs] == sorted(r["seq"] for r in runs)
    outputs = [o["data"] for r in runs for o in r["outputs"]]
    assert outputs == [{"text": f"row, {i}", "n": str(i), "source": "test", "size": len(f"row, {i}")} for i in range(1000)]
    again = native.here("publish", native.input, "-f", str(file), "source=test")
    assert (again.code, again.out.split(" in ")[0]) == (0, f"0 published to {native.input}, 1,000 duplicates,")
    assert "publish  1000/1000" in again.err


def test_a_file_with_bad_rows_is_refused_and_none_of_it_is_published(native: Project, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,n\nfirst,1\ntoo,many,cells\n\nfew\nlast,4\n")
    found = native.here("publish", native.input, "-f", str(file))
    assert (found.code, found.out) == (2, "")
    assert "error[DX120] rows.csv:3: 3 cells, and the header has 2\n  fix: " in found.err
    assert "error[DX120] rows.csv:5: 1 cell, and the header has 2\n  fix: " in found.err
    assert "rows.csv: 2 of 4 rows cannot be published, and nothing of the file was published\n" in found.err
    file.write_text("text,n\nfirst,1\ntoo many,2\nfew,3\nlast,4\n")
    mended = native.publish("-f", str(file))
    assert [o["data"]["text"] for r in mended.objects() for o in r["outputs"]] == ["first", "too many", "few", "last"]


def test_a_row_with_an_integer_that_would_be_rounded_is_a_bad_row(native: Project, tmp_path: Path) -> None:
    for name, text in (
        ("r.jsonl", '{"text":"a"}\n{"text":"b","n":123456789012345678901}\n'),
        ("r.json", '{"n":1e3,"m":-99999999999999999999}'),
    ):
        (tmp_path / name).write_text(text)
        found = native.here("publish", native.input, "-f", str(tmp_path / name))
        assert found.code, name
        assert "has more than 64 bits" in found.err
        assert ("r.jsonl:2: the integer 123456789012345678901" if name == "r.jsonl" else "-99999999999999999999") in found.err


def test_lines_of_stdin_are_published_unchanged(native: Project) -> None:
    large, huge = (json.dumps({"text": "x" * size}) for size in (2_000_000, 68_000_000))
    found = native.publish("-", "by=me", stdin=f'{{"text":"same"}}\nnot json\n{large}\n{huge}\n{{"text":"same"}}\n')
    assert found.code == 1
    same = {"text": "same", "by": "me", "size": 4}
    larger = {"text": "x" * 2_000_000, "by": "me", "size": 2_000_000}
    outputs = [r["outputs"][0]["data"] for r in found.objects()]
    assert sorted(outputs, key=lambda data: data["size"]) == [same, same, larger]
    told = [json.loads(line)["error"] for line in found.err.splitlines() if '"error"' in line]
    assert [(e["code"], e["node"]) for e in told] == [("DX120", "stdin:2"), ("DX405", "stdin:4")]


def test_publish_keeps_to_the_rate_that_is_set(native: Project, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[{"text":"one"},{"text":"two"},{"text":"three"},{"text":"four"}]')
    found = native.here("publish", native.input, "-f", str(tmp_path / "r.json"), "--rate", "10/s")
    assert float(found.out.split(" in ")[1].split()[0]) >= 0.3


def test_publishing_to_a_subject_that_no_stream_stores_is_refused_with_a_suggestion(native: Project) -> None:
    found = native.here("--json", "publish", f"{native.u}.inn", "text=hello")
    assert (found.code, found.error()["code"], found.out) == (4, "DX404", "")
    assert found.error()["fix"].startswith(f"did you mean {native.input} (source of native)?")


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ([], "there is no data"),
        (["text=hello", "--id", ""], "--id is empty"),  # as of a variable that is not set
        (["-f", "rows.csv", "-"], "the rows come from one place"),
        (["-f", "none.csv"], "cannot read none.csv: No such file"),
        (["-f", "."], "cannot read .: Is a directory"),
        (["-f", "rows.csv", "--format", "excel"], "there is no format 'excel'"),
        (["-f", "rows.csv", "--encoding", "klingon"], "there is no encoding 'klingon'"),
        (["-f", "rows.csv", "--types", "n: number"], "'n: number' names no type"),
        (["a=b", "--format", "csv"], "are for files"),
        (['{"a": 1'], "is not JSON"),
        (["text"], "'text' is not data"),
        (["-", "text"], "'text' is not data"),
        (["a=b", "--header", "x"], "'x' is no header"),
        (["a=b", "--header", "Nats-Msg-Id=x"], "header 'Nats-Msg-Id' is set by dspex"),
        (["a=b", "--rate", "fast"], "'fast' is not a rate"),
        (["a=b", "--at", "noon"], "'noon' is no time"),
        (["a=b", "--after", "noon"], "'noon' is not a duration"),
        (["a=b", "--after", "1h", "--at", "2026-01-31T09:00:00Z"], "an event has one time"),
        (["a=b", "--wait=soon"], "'soon' is not a duration"),
        (["a=b", "--wait", "soon"], "'soon' is neither data nor a duration"),
        (["a=b", "--wait", "5"], "'5' is neither data nor a duration"),
    ],
)
def test_wrong_arguments_of_publish_are_refused_and_publish_nothing(native: Project, args: list[str], why: str) -> None:
    refused = native.here("publish", native.input, *args)
    assert (refused.code, refused.out, why in refused.err) == (2, "", True), refused.err
    assert "\n  fix: " in refused.err
