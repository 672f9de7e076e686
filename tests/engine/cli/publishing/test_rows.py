"""Rows of files as events: which id each has, its key, and what is said of duplicates. On a real server."""

from __future__ import annotations

import asyncio
import gzip
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_bench import Done, Project, objects
from waiting import eventually

from dspex.bus import nats
from dspex.bus.port import StreamConfig

ROWS = "id,customer,text\n1,ann,hello\n2,bob,hi there\n"


@pytest.fixture
def shop(tmp_path: Path, unique: str, nats_url: str) -> Project:
    """A project whose subject a stream of its own stores, and nobody reads."""
    project = Project(tmp_path, unique, NATS_URL=nats_url)

    async def made() -> None:
        bus = await nats.connect(nats_url)
        await bus.ensure_stream(StreamConfig(unique, [f"{unique}.>"]))
        await bus.close()

    asyncio.run(made())
    return project


def publish(project: Project, *args: str, **options: Any) -> Done:
    return project.here("publish", project.input, *args, **options)


def receipts(project: Project, *args: str, **options: Any) -> list[dict[str, Any]]:
    done = project.here("--json", "publish", project.input, *args, **options)
    assert done.code == 0, done.err
    return done.objects()


def stored(project: Project) -> list[dict[str, Any]]:
    """All events, as `watch` prints them."""

    async def count() -> int:
        bus = await nats.connect(project.env["NATS_URL"])
        info = await bus.stream(project.u)
        await bus.close()
        return info.messages if info else 0

    number = asyncio.run(count())
    command = ("--json", "watch", project.input, "--start", "all", "--count", str(number))
    return project.here(*command).objects() if number else []


def test_equal_rows_of_two_files_of_one_name_are_two_events_and_a_copy_of_a_file_is_no_other_file(shop: Project) -> None:
    files = [shop.folder / folder / "rows.csv" for folder in ("a", "b", "copy")]
    for file, more in zip(files, ("3,eve,x\n", "4,eve,y\n", "3,eve,x\n")):
        file.parent.mkdir()
        file.write_text(ROWS + more)
    assert [r["duplicate"] for file in files for r in receipts(shop, "-f", str(file))] == [False] * 6 + [True] * 3
    packed = shop.folder / "rows.csv.gz"
    packed.write_bytes(gzip.compress(files[0].read_bytes()))
    again = publish(shop, "-f", str(packed))
    assert again.out.startswith(f"0 published to {shop.input}, 3 duplicates, in")
    assert f"rows.csv.gz:3 is a duplicate of what was stored before: {shop.u} has it as 2" in again.err
    assert len(stored(shop)) == 6


def test_a_row_that_stands_twice_in_a_file_is_two_events(shop: Project) -> None:
    (shop.folder / "rows.jsonl").write_text('{"a": 1}\n{"a": 1}\n')
    assert [r["seq"] for r in receipts(shop, "-f", "rows.jsonl")] == [1, 2]
    assert [r["duplicate"] for r in receipts(shop, "-f", "rows.jsonl", "b=2")] == [False, False]  # other data
    assert len(stored(shop)) == 4


def test_key_and_id_of_rows_are_fields_of_theirs(shop: Project) -> None:
    (shop.folder / "rows.csv").write_text(ROWS)
    assert [r["duplicate"] for r in receipts(shop, "-f", "rows.csv", "--key", "customer", "--id", "id")] == [False, False]
    receipts(shop, "-", "--key", "n", "by=me", stdin='{"n": 7}\n')
    assert [e["key"] for e in stored(shop)] == ["ann", "bob", "7"]
    assert receipts(shop, "id=1", "customer=ann", "text=hello", "--id", "1")[0]["duplicate"]
    (shop.folder / "more.csv").write_text(ROWS + "1,ann,hello\n")
    again = publish(shop, "-f", "more.csv", "--id", "id")
    assert again.code == 0
    assert f"more.csv:2 is a duplicate of what was stored before: {shop.u} has it as 1" in again.err
    assert f"more.csv:4 is a duplicate of more.csv:2, which has its id: {shop.u} has it as 1" in again.err
    assert len(stored(shop)) == 3


def test_a_file_that_is_too_large_to_be_kept_is_read_again(shop: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspex.engine.cli.events.publish.KEPT", 2000)
    (shop.folder / "rows.csv").write_text("text,n\n" + "".join(f'"row, {i}",{i}\n' for i in range(700)))
    assert [r["duplicate"] for r in receipts(shop, "-f", "rows.csv")] == [False] * 700
    assert [e["data"] for e in stored(shop)] == [{"text": f"row, {i}", "n": str(i)} for i in range(700)]
    monkeypatch.undo()
    assert publish(shop, "-f", "rows.csv").out.startswith(f"0 published to {shop.input}, 700 duplicates")


def test_two_rows_of_a_file_that_differ_and_have_one_id_are_refused(shop: Project) -> None:
    (shop.folder / "rows.csv").write_text(ROWS + "1,eve,other\n")
    refused = publish(shop, "-f", "rows.csv", "--id", "id")
    assert (refused.code, stored(shop)) == (2, [])
    assert "error[DX120] rows.csv:4: it has the id '1' of rows.csv:2, and other data" in refused.err


def test_an_id_of_another_event_is_an_error_and_what_was_not_stored_is_not_shown_as_stored(shop: Project) -> None:
    publish(shop, "text=first", "--id", "1")
    (shop.folder / "rows.csv").write_text(ROWS)
    other = publish(shop, "-f", "rows.csv", "--id", "id")
    assert (other.code, other.out.split(", in")[0]) == (1, f"1 published to {shop.input}, 0 duplicates, 1 bad row")
    assert f"rows.csv:2: its id '1' is that of another event, which {shop.u} has as 1: this one is not stored" in other.err
    one = publish(shop, "text=second", "--id", "1")
    assert (one.code, one.out) == (1, "")
    assert "its id '1' is that of another event" in one.err
    elsewhere = shop.here("publish", f"{shop.u}.other", "text=first", "--id", "1")
    assert elsewhere.code == 1
    same = publish(shop, "text=first", "--id", "1")
    assert (same.code, "a duplicate: an event with this id was stored before" in same.out) == (0, True)
    assert [e["data"]["text"] for e in stored(shop)] == ["first", "hi there"]


def test_wait_never_shows_the_outputs_of_another_event(native: Project) -> None:
    first = native.publish("text=hello", "--id", "one")
    again = native.publish("text=hello", "--id", "one")
    assert [o["outputs"][0]["data"]["text"] for o in (*first.objects(), *again.objects())] == ["hello", "hello"]
    other = native.publish("text=good bye", "--id", "one")
    assert (other.code, other.out, other.error()["code"]) == (1, "", "DX120")


def test_a_line_of_stdin_with_the_id_of_another_event_is_an_error_and_nothing_of_that_event_is_shown(native: Project) -> None:
    native.publish("text=first", "--id", "s1")
    lines = '{"id":"s1","text":"first"}\n{"id":"s2","text":"fine"}\n{"id":"s2","text":"lost"}\n{"id":"s2","text":"fine"}\n'
    found = native.publish("-", "--id", "id", stdin=lines)
    said = [e["error"]["message"].partition(", which")[0] for e in objects(found.err + found.out) if "error" in e]
    assert said == ["its id 's1' is that of another event", "its id 's2' is that of another event"], found.err
    assert (found.code, [o["outputs"][0]["data"]["text"] for o in found.objects() if "outputs" in o]) == (1, ["fine", "fine"])


def test_json_on_the_command_line_is_a_datum_and_stdin_may_be_a_file(shop: Project) -> None:
    receipts(shop, '{"a": 1, "b": "x=y"}', "c=2")
    receipts(shop, "[1, 2]")
    receipts(shop, "-f", "-", stdin="a;b\n1;x\n")
    receipts(shop, "-f", "-", "--types", "a: int", stdin="a,b\n1,x\n")
    cut = publish(shop, "-f", "-", "--format", "csv", stdin='a,b\n1,"x\n')
    assert (cut.code, "stdin:2: the quote that opens here is never closed" in cut.err) == (2, True)
    found = [{"a": 1, "b": "x=y", "c": "2"}, [1, 2], {"a": "1", "b": "x"}, {"a": 1, "b": "x"}]
    assert [e["data"] for e in stored(shop)] == found


def orders(shop: Project) -> None:
    """Apply a topology that reads the project's input. No engine runs it."""
    lines = ["dspex: 1", "topology: orders", f"sources: {{ {shop.input}: {{}} }}", "nodes:"]
    lines += [f"  big: {{ from: {shop.input}, filter: 'n > 1' }}", f"sinks: {{ out{shop.u}.big: {{ from: big }} }}"]
    done = shop.here("apply", shop.write("orders.yaml", "\n".join(lines)))
    assert done.code == 0, done.err


def test_a_subject_that_a_topology_reads_and_no_stream_stores_is_not_offered_as_another_one(shop: Project) -> None:
    orders(shop)

    async def gone() -> None:
        bus = await nats.connect(shop.env["NATS_URL"])
        await bus.remove("stream", shop.u)
        await bus.close()

    asyncio.run(gone())
    refused = publish(shop, "n=1")
    assert (refused.code, "did you mean" in refused.err) == (4, False)
    assert "orders reads it, and the stream is gone that stored it: apply it again" in refused.err


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), pytest.param(signal.SIGTERM, 143, "ended by SIGTERM", marks=pytest.mark.long)],
)
def test_who_waits_no_longer_is_told_which_run_goes_on(shop: Project, how: signal.Signals, code: int, said: str) -> None:
    orders(shop)
    with shop.start("publish", shop.input, "n:=2", "--wait") as running:
        eventually(lambda: "no engine is running" in running.errors())
        assert running.end(how) == code
        *_, where, last = running.errors().splitlines()
        assert (where, last) == (f"the event is stored in {shop.u} as 1, and its run goes on: run {shop.u}@1", said)
