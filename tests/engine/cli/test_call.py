"""`dspex call`, and `run` with a pool: a real worker, and a stand-in for the model's server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_bench import CLASSIFY, TRIAGE, Project, objects, stand_in
from learner import TEXT, Learner, rows

import dspex.sync
from dspex import Settings

RESULT = ["id", "data", "route", "lm", "worker", "attempts", "elapsed_ms", "dspy_version", "usage"]
RESULT += ["state", "warning"]
SETTINGS = """
topologies = ["triage.yaml"]
engine.submit = true
lm.main = {{ model = "openai/stand-in", base_url = "{url}", price = {{ input = 1.0, output = 2.0 }} }}
lm.other = {{ model = "openai/stand-in", base_url = "{url}", key_env = "OTHER_KEY" }}
lm.gone = {{ model = "openai/stand-in", base_url = "http://127.0.0.1:9/v1" }}
pools.lightweight = {{ programs = ["programs:*", "broken:*", "dspy:BootstrapFewShot"] }}
"""
PROGRAMS = """
import dspy
import dspex.workers
from contracts_of_calls import Order
class Shout(dspy.Module):
    def forward(self, text):
        dspex.workers.context().status("shouting")
        assert text != "too quiet"
        return dspy.Prediction(reply=text.upper())
class Cheap(dspy.Module):
    def forward(self, order: Order):
        return dspy.Prediction(cheaper={"item": order.item, "price": order.price / 2})
"""
ORDERS = """
from dspex import Signature
from pydantic import BaseModel
class Order(BaseModel):
    item: str
    price: float
CONTRACT = Signature("order: Order -> cheaper: Order", types={"Order": Order})
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[Project]:
    """A project whose topology and pool run."""
    with stand_in(Learner()) as url:
        name = f"c{os.urandom(5).hex()}"
        made = Project(tmp_path_factory.mktemp("call"), name, SETTINGS.format(url=url), NATS_URL=nats_url, OTHER_KEY="k")
        made.write("triage.yaml", TRIAGE.format(u=made.u, signature=CLASSIFY))
        made.write("programs.py", PROGRAMS)
        made.write("broken.py", "raise RuntimeError('no')\n")
        made.write("contracts_of_calls.py", ORDERS)  # imported here: no other test may have one of this name
        with made.start("--json", "run") as run:
            run.until('"ready"')
            told = objects("\n".join(run.lines))
            (pool,) = [o for o in told if o["event"] == "pool ready"]
            assert (pool["pool"], pool["programs"]) == ("lightweight", ["programs:Cheap", "programs:Shout"])
            assert "RuntimeError" in pool["failed"]["broken:*"]
            yield made
            assert run.end() == 0, run.errors()


SAVED = {
    "traces": [], "train": [], "lm": {"model": "openai/other"},
    "demos": [{"text": "hi", "reply": "ho"}],
    "signature": {
        "instructions": "Answer as a pirate.",
        "fields": [{"prefix": "Text:", "description": "${text}"}, {"prefix": "Reply:", "description": "${reply}"}],
    },
    "metadata": {"dependency_versions": {"dspy": "3.2.1"}},
}  # fmt: skip


LACKING = """
dspex: 1
topology: lacking
sources: {{ {u}.other: {{}} }}
nodes:
  shout: {{ from: {u}.other, program: "programs:Shout", signature: "text -> reply" }}
  ask: {{ from: shout, predict: "reply -> label", lm: [other, gone] }}
  again: {{ from: ask, predict: "label -> word", lm: gone }}
  missing: {{ from: again, program: "programs:Missing", signature: "word -> end" }}
  saved: {{ from: {u}.other, predict: "text -> reply", state: "old@1" }}
sinks: {{ {u}.end: {{ from: missing }}, {u}.said: {{ from: saved }} }}
"""


def test_an_answer_is_printed_while_it_is_made(project: Project) -> None:
    accepted, *chunks, result = project.here(
        "--json", "call", "text -> reply, urgency: int", "text=hello", "--stream"
    ).objects()
    assert (accepted["kind"], accepted["id"], accepted["worker"]) == ("accepted", result["id"], result["worker"])
    assert list(result) == ["kind", *RESULT]
    assert [list(chunk) for chunk in chunks] == [["kind", "field", "text", "sequence"]] * len(chunks)
    assert {chunk["kind"] for chunk in chunks} == {"chunk"}
    assert "".join(c["text"] for c in chunks if c["field"] == "reply") == result["data"]["reply"] == "reply of hello"
    human = project.here("call", "text -> reply, urgency: int", "text=hello", "--stream")
    assert human.out == f"reply  reply of hello\nurgency  {result['data']['urgency']}\n"
    assert "lm main" in human.err
    said = project.here("--json", "call", "programs:Shout", "--signature", "text -> reply", "text=a", "--stream").objects()
    assert [one["kind"] for one in said] == ["accepted", "progress", "chunk", "result"]
    assert (said[1]["text"], said[2]["text"]) == ("shouting", "A")
    failed = project.here("call", "programs:Shout", "--signature", "text -> reply", "text=too quiet", "--stream")
    assert (failed.code, failed.out) == (1, "")
    assert "shouting" in failed.err
    assert "AssertionError" in failed.err


def test_a_call_is_submitted_and_its_result_is_fetched_by_its_run(project: Project) -> None:
    (sent,) = project.here("--json", "call", "text -> reply", "text=later", "--detach").objects()
    assert list(sent) == ["run", "stream", "seq", "duplicate"]
    settings = Settings.load(project.folder / "dspex.toml", server__url=project.env["NATS_URL"])
    with dspex.sync.connect(settings=settings) as client:
        result = client.run(sent["run"]).result("60s")
    assert (result.data, result.lm) == ({"reply": "reply of later"}, "main")
    human = project.here("call", "text -> reply", "text=later", "--detach")
    assert human.out.startswith("run lightweight/")
    refused = project.here("call", "text -> reply", "text=later", "--detach", "--timeout", "5s")
    assert (refused.code, "DX105" in refused.err) == (2, True)


def test_a_program_is_saved_promoted_called_and_rolled_back_from_the_shell(project: Project) -> None:
    project.write("state.json", json.dumps(SAVED))
    put = project.here("programs", "put", "pirate", "state.json")
    assert (put.code, put.out) == (0, "pirate@1\n"), put.err
    assert "language model of self was left out" in put.err
    project.write("state.json", json.dumps({**SAVED, "demos": []}))
    (second,) = project.here("--json", "programs", "put", "pirate", "state.json").objects()
    assert (second["program"], second["version"]) == ("pirate", 2)
    assert project.here("programs", "promote", "pirate", "1", "prod").out == "pirate@prod is pirate@1 now\n"
    project.here("programs", "promote", "pirate", "2", "prod")
    called = project.here("--json", "call", "text -> reply", "text=hello", "--state", "pirate@prod")
    (result,) = called.objects()
    assert (result["state"], result["route"]) == ("pirate@2", "worker")
    assert "was saved under DSPy 3.2.1" in result["warning"]
    assert project.here("programs", "rollback", "pirate", "prod").out == "pirate@prod is pirate@1 again\n"
    (again,) = project.here("--json", "call", "text -> reply", "text=hello", "--state", "pirate@prod").objects()
    assert again["state"] == "pirate@1", "the pool was told"
    listed = project.here("--json", "programs", "ls", "pirate").objects()
    assert [(one["version"], one["aliases"]) for one in listed] == [(1, ["prod"]), (2, [])]
    shown = project.here("programs", "show", "pirate@prod")
    assert "Answer as a pirate." in shown.out
    assert "self: Text, Reply; 1 demonstration" in shown.out
    made = project.here("programs", "show", "triage/classify")
    assert "self: text: str -> intent: Literal" in made.out, made.err
    (info,) = project.here("--json", "programs", "show", "text -> reply", "--state", "pirate").objects()
    assert (info["state"], info["lms"], info["predictors"][0]["instructions"]) == (
        "pirate@2", {"main": "openai/stand-in"}, "Answer as a pirate."
    )  # fmt: skip
    unknown = project.here("--json", "call", "text -> reply", "text=hello", "--state", "pirate@9")
    assert (unknown.code, unknown.error()["code"]) == (1, "DX627")
    told = [one["verb"] for one in project.here("--json", "audit", "ls").objects()]
    assert [verb for verb in told if verb in ("put", "promote", "rollback")] == ["put", "put", "promote", "promote", "rollback"]


def test_a_pickle_is_not_saved(project: Project) -> None:
    project.write("state.pkl", "\x80\x04cposix\nsystem\n")
    refused = project.here("--json", "programs", "put", "pirate", "state.pkl")
    assert (refused.code, refused.error()["code"]) == (2, "DX120")
    assert "a pickle is never loaded" in refused.error()["fix"]


def test_a_call_prints_its_fields_and_what_it_cost(project: Project) -> None:
    found = project.here("--json", "call", "text -> reply", "text=hello")
    assert found.code == 0, found.err
    (result,) = found.objects()
    assert list(result) == RESULT
    assert (result["data"], result["route"], result["lm"]) == ({"reply": "reply of hello"}, "native", "main")
    assert list(result["usage"]) == ["input_tokens", "output_tokens", "cost", "cached_tokens", "finish", "requests"]
    (by_dspy,) = project.here("--json", "call", "text -> reply", "text=hello", "--route", "worker").objects()
    assert (by_dspy["data"], by_dspy["route"]) == (result["data"], "worker")
    human = project.here("call", "triage/classify", "text=hello", "--lm", "other")
    assert [line.split()[0] for line in human.out.splitlines()] == ["intent", "urgency"]
    assert "  lm other  lightweight-" in human.err
    many = project.here(
        "--json", "call", "programs:Shout", "--signature", "text -> reply", "-", stdin='{"text":"a"}\n{"text":"b"}\n'
    )
    assert [r["data"]["reply"] for r in many.objects()] == ["A", "B"]


@pytest.mark.parametrize(
    ("args", "code", "error"),
    [
        (["text -> reply", "text=x", "--pool", "gpu"], 5, "DX601"),
        (["text -> reply", "text=standin:hang", "--timeout", "300ms"], 5, "DX603"),
        (["text -> reply", "text=standin:nonsense"], 1, "DX607"),
        (["text -> reply", "txt=x"], 1, "DX502"),
        (["programs:Shout", "text=x"], 2, "DX126"),
        (["secret:Thing", "text=x", "--signature", "text -> reply"], 1, "DX608"),
        (["programs:Shout", "text=too quiet", "--signature", "text -> reply"], 1, "DX608"),
        (["programs:Shout", "text=x", "--signature", "text: Order -> reply"], 3, "DX209"),
        (["programs:Shout", "text=x", "--signature", "contracts_of_calls:NONE"], 3, "DX221"),
        (["programs:Shout", "text=x", "--signature", "broken:X"], 3, "DX221"),
        (["triage/clasify", "text=x"], 3, "DX235"),
        (["nothing", "text=x"], 2, "DX126"),
        (["text -> ", "text=x"], 3, "DX210"),
        (["text -> reply: Order", "text=x"], 3, "DX209"),
        (["text -> reply", "text=x", "--route", "dspy"], 2, "DX105"),
        (["programs:Shout", "text=x", "--signature", "text -> reply", "--route", "native"], 1, "DX608"),
    ],
)
def test_a_call_that_fails_says_why_with_the_code_of_its_kind(project: Project, args: list[str], code: int, error: str) -> None:
    found = project.here("--json", "call", *args)
    assert (found.code, found.error()["code"], found.out) == (code, error, ""), found.err
    assert "dlq" not in found.error()["fix"]  # a call leaves no letter


def test_a_program_is_called_by_a_signature_with_types_of_the_users(project: Project) -> None:
    order = 'order:={"item": "tea", "price": "3"}'  # what the type makes of it reaches the program
    found = project.here("--json", "call", "programs:Cheap", order, "--signature", "contracts_of_calls:CONTRACT")
    assert found.code == 0, found.err
    assert found.objects()[0]["data"] == {"cheaper": {"item": "tea", "price": 1.5}}, found.err
    told = project.here("--json", "call", "programs:Cheap", order, "--signature", "order: Order -> cheaper: Order").error()
    assert told["fix"].endswith("and here: --signature module:CONTRACT")


def test_a_run_with_calls_shows_their_usage(project: Project, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\n" + "".join(f"message {i}\n" for i in range(40)))
    published = project.publish("-f", str(tmp_path / "rows.csv"))
    assert published.code == 0, published.err
    runs = published.objects()
    assert [(r["status"], r["calls"], len(r["outputs"])) for r in runs] == [("done", 1, 1)] * 40
    assert all(r["usage"]["cost"] > 0 for r in runs)
    with project.start("--json", "status", "--watch") as status:  # an engine says how it is now and then
        (found,) = objects(status.until('"lag":0,"oldest":null,"open_calls":0,'))
    (pool,) = found["pools"]
    assert (pool["pool"], pool["size"], pool["ready"], pool["restarts"]) == ("lightweight", 1, 1, 0)
    seen = project.here("--json", "watch", "triage/classify", "--start", "all", "--count", "40").objects()
    assert set(seen[-1]["data"]) == {"intent", "urgency"}, "others may have asked before"


def test_a_model_that_answers_nonsense_leaves_a_dead_letter_that_can_be_redriven(project: Project) -> None:
    found = project.publish("text=standin:nonsense")
    assert (found.code, found.objects()[0]["status"]) == (1, "failed")
    (letter,) = project.here("--json", "dlq", "ls", "--node", "classify").objects()
    assert (letter["reason"], letter["event"]["data"]) == ("InvalidOutput", {"text": "standin:nonsense"})
    assert project.here("--json", "dlq", "redrive", "--reason", "InvalidOutput", "--set", "text=fine").code == 0
    (event,) = project.here("--json", "watch", project.output, "--start", str(letter["sequence"]), "--count", "1").objects()
    assert (event["run"], event["data"]["text"]) == (letter["run"], "fine")


def test_a_session_is_spoken_in_listed_shown_and_ended(project: Project) -> None:
    for text in ("one", "two"):
        done = project.here("--json", "call", "text -> reply", f"text={text}", "--session", "ann/5")
        assert done.code == 0, done.err
    (listed,) = [one for one in project.here("--json", "sessions", "ls", "--since", "1h").objects() if one["id"] == "ann/5"]
    assert [listed[name] for name in ("id", "turns", "revision", "ttl", "ended")] == ["ann/5", 2, 0, 2_592_000.0, False]
    assert ["ann/5", "2"] in [line.split()[:2] for line in project.here("sessions", "ls").out.splitlines()]
    (shown,) = project.here("--json", "sessions", "show", "ann/5", "--limit", "1").objects()
    assert [(turn["inputs"], turn["outputs"]) for turn in shown["history"]] == [({"text": "two"}, {"reply": "reply of two"})]
    assert "reply of one" in project.here("sessions", "show", "ann/5").out
    assert project.here("--json", "sessions", "end", "ann/5").error()["code"] == "DX136"
    assert project.here("--json", "sessions", "end", "ann/5", "--yes").objects()[0]["ended"] is True
    assert project.here("--json", "call", "text -> reply", "text=x", "--session", "ann/5").error()["code"] == "DX702"
    assert [project.here("sessions", verb, "nobody", *more).code for verb, more in (("show", []), ("end", ["--yes"]))] == [1, 1]
    (entry,) = [e for e in project.here("--json", "audit", "ls").objects() if e["verb"] == "end"]
    assert entry["what"] == {"session": "ann/5"}


def test_submitted_calls_are_turns_of_a_session(project: Project) -> None:
    for text in ("one", "two"):
        (sent,) = project.here("--json", "call", "text -> reply", f"text={text}", "--detach", "--session", "bob").objects()
    settings = Settings.load(project.folder / "dspex.toml", server__url=project.env["NATS_URL"])
    with dspex.sync.connect(settings=settings) as client:
        assert client.run(sent["run"]).result("60s").data == {"reply": "reply of two"}
        assert [turn.inputs["text"] for turn in client.session("bob").history()] == ["one", "two"]


OPTIMIZE = ["optimize", TEXT, "--metric", "exact_match", "--pool", "lightweight", "--threads", "2"]


def _csv(project: Project, name: str, count: int, of: str) -> str:
    return project.write(name, "text,intent,more\n" + "".join(f"{r['text']},{r['intent']},-\n" for r in rows(count, of)))


def test_a_program_is_made_better_saved_and_used_from_the_shell(project: Project) -> None:
    command = [
        *OPTIMIZE,
        "--data",
        _csv(project, "rows.csv", 10, "shell"),
        "--held-back",
        "0.4",
        "--save",
        "sorted",
        "--id",
        "j1",
    ]
    done = project.here(
        "--json",
        *command,
        "--budget",
        "50 requests, 100k tokens",
        "--option",
        "max_bootstrapped_demos=2",
        "-o",
        str(project.folder / "made.json"),
    )
    (found,) = done.objects()
    assert (found["before"], found["after"], found["train"], found["test"]) == (0.0, 100.0, 6, 4), done.err
    assert (found["saved"], found["predictors"], found["requests"]) == ("sorted@1", ["self"], 4 + 2 + 4)
    assert "j1" in done.err
    (again,) = project.here("--json", *command).objects()
    assert again == found, "the same --id is the same job, and its state the same version"
    (used,) = project.here("--json", "call", TEXT, "text=loan again", "--state", "sorted").objects()
    assert (used["data"], used["state"]) == ({"intent": "loan"}, "sorted@1")
    assert project.here("programs", "put", "copy", "made.json").out == "copy@1\n"
    human = project.here(*OPTIMIZE, "--data", "rows.csv", "--test", "rows.csv", "--state", "sorted", "--save", "sorted")
    assert "score     100.0 → 100.0 %  exact_match, 10 rows held back" in human.out, human.err
    assert "not saved: it is no better" in human.out
    other = project.here(*OPTIMIZE, "--data", "rows.csv", "--with", "MIPROv2")
    assert (other.code, "dspy:MIPROv2" in other.err, "pools.lightweight.programs" in other.err) == (1, True, True), other.err
    over = project.here(*OPTIMIZE, "--id", "j1", "--cancel")
    assert (over.code, over.out) == (0, "not running now: it ends where a process of its pool takes it up\n")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pool", "optimizer"], "error[DX133] optimizer: no pool 'optimizer' runs, and the settings have none"),
        (["--metric", "exact"], "there is no metric 'exact'"),
        (["--with", "MIPRO"], "there is no optimizer 'MIPRO' in jobs"),
        (["--option", "auto=light"], "BootstrapFewShot takes no option 'auto'"),
        (["--option", "max_rounds=a:=1"], "max_rounds of BootstrapFewShot is 'a:=1'"),
        (["--budget", "5 dollars"], "'5 dollars' is no budget of requests or tokens"),
        (["--budget", "3 requests"], "the two scores alone take 4 requests or more, and the budget has 3"),
        (["--data", "short.csv"], "the rows, row 2: the outputs do not fit"),
        (["--data", "other.csv"], "the rows, row 1: it has none of the outputs intent"),
        (["--lm", "main,other"], "a job asks one model, and --lm names several: main,other"),
        (["--cancel"], "--cancel does not say which job"),
    ],
)
def test_a_job_that_cannot_be_says_why_before_it_is_submitted(project: Project, more: list[str], said: str) -> None:
    _csv(project, "few.csv", 6, "few")
    project.write("short.csv", "text,intent\ncard a,card\ncard b,\n")
    project.write("other.csv", "text,label\ncard a,card\n")
    refused = project.here(*OPTIMIZE, "--data", "few.csv", *more)
    assert refused.code in (1, 2), refused.out
    assert said in refused.err


def test_check_live_asks_the_workers_for_what_they_have(project: Project) -> None:
    good = project.here("check", "--live")
    project.write("old.json", json.dumps(SAVED))
    project.here("programs", "put", "old", "old.json")
    assert (good.code, good.out) == (0, "ok triage 3 nodes; answered: 1 pool, 1 language model\n")
    project.write("lacking.yaml", LACKING.format(u=project.u))
    assert project.here("check", "lacking.yaml").code == 0  # what is wrong is not to be seen from here
    bad = project.here("--json", "check", "lacking.yaml", "--live")
    found = [(one["code"], one["level"], one["node"]) for one in bad.objects()]
    gone = [("DX604", "error", "ask"), ("DX604", "error", "again")]
    assert (bad.code, found) == (3, [*gone, ("DX608", "error", "missing"), ("DX324", "warning", "saved")])
    assert "'gone'" in bad.objects()[0]["message"]
