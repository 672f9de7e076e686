"""Each role runs its verbs with the permissions that `dspex server permissions` prints, and every other subject is denied."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_bench import CLASSIFY, Done, Project, reads_runs, stand_in
from waiting import eventually

import dspex
from dspex.bus import subjects
from dspex.bus.local.server import LocalServer
from dspex.bus.settings.model import Settings

APP = "shop"
OPTIONS: Mapping[str, list[str]] = {
    **{role: [] for role in ("engine", "operator", "approver")},
    "worker": ["--pool", "lightweight"],
    "publisher": ["--subject", "shop.in"],
    "caller": ["--pool", "lightweight"],
    "reader": ["--subject", "shop.out"],
    "gateway": ["--pool", "lightweight", "--subject", "shop.in"],
}
ROLES = tuple(OPTIONS)
PAUSING = (["pause", "triage", "--until", "1h"], ["resume", "triage"])
SCALING = (["ls"], ["scale", "lightweight=2"], ["drain", "lightweight"], ["restart", "lightweight"])
SAVING = (
    ["put", "reply", "state.json"],
    ["promote", "reply", "1", "prod"],
    ["ls"],
    ["show", "reply@prod"],
    ["show", "triage/classify"],
)
STATE = {"demos": [], "signature": {"instructions": "x", "fields": [{"prefix": p, "description": p} for p in ("T", "R")]}}
TOPOLOGY = """
dspex: 1
topology: triage
sources: { shop.in: {} }
nodes:
  classify: { from: shop.in, predict: "%s", retry: { attempts: 1 } }
sinks: { shop.out: { from: classify, stream: SHOP_OUT }, shop.other: { from: classify } }
"""
SETTINGS = """
topologies = ["triage.yaml"]
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
pools.lightweight.programs = ["dspy:BootstrapFewShot"]
"""

# What a user of each role may publish: the subject, and the roles that may. Everybody else is denied.
S, KV, OBJ = f"DSPEX_{APP}", f"KV_DSPEX_{APP}", f"OBJ_DSPEX_{APP}_payloads"
APPLIED = f"{KV}_applied"
ANSWERS = f"$JS.API.DIRECT.GET.{S}_answers.dspex.{APP}.answer"
OWNERS = {"engine", "operator"}
PUBLISHED: Mapping[str, Collection[str]] = {
    "shop.in": {"publisher"},
    "shop.out": OWNERS,
    "shop.third": set(),
    "dspex.shop.log.triage.s1.0": OWNERS,
    "dspex.shop.log.triage.s1.0.snapshot": OWNERS,
    "dspex.shop.edge.triage.s1.0": OWNERS,
    "dspex.shop.edge.triage.s1.0.decide": {*OWNERS, "approver"},
    "dspex.bank.edge.triage.s1.0.decide": set(),
    "dspex.shop.time.triage.s1": OWNERS,
    "dspex.shop.work.lightweight.1.triage.classify": OWNERS,
    "dspex.shop.dead.triage.classify": OWNERS,
    **{f"dspex.shop.audit.{verb}": {"operator"} for verb in ("redriven", "drop", "pause", "resume", "publish", "scale")},
    "dspex.shop.audit.decide": {"operator", "approver"},
    "dspex.shop.audit.apply": OWNERS,
    "dspex.shop.told.publish": {"publisher", "operator"},
    **{f"dspex.shop.told.{verb}": {"caller", "operator"} for verb in ("call", "end")},
    "dspex.shop.record.lightweight.triage.s1.0": {"worker"},
    "dspex.shop.record.lightweight": {"worker"},
    "dspex.shop.record.gpu.triage.s1.0": set(),
    "dspex.shop.request.lightweight.one": {"worker"},
    "dspex.shop.request.gpu.one": set(),
    **{f"dspex.shop.request.{pool}.end.one": {*w, "operator"} for pool, w in (("lightweight", ["caller"]), ("gpu", []))},
    "dspex.shop.call.lightweight.triage.classify": {"caller"},
    "dspex.shop.call.lightweight.adhoc.predict": {"caller"},
    "dspex.shop.call.lightweight.adhoc.describe": {"caller", "operator"},
    "dspex.shop.call.gpu.triage.classify": set(),
    **{f"dspex.shop.submit.{pool}.predict._INBOX_caller.0": who for pool, who in (("lightweight", {"caller"}), ("gpu", set()))},
    "dspex.shop.submit.lightweight.predict._INBOX_other.0": set(),
    **{f"dspex.shop.submit.{p}.optimize._INBOX_{who}.0": {who} for p, who in (("lightweight", "caller"), ("gpu", "operator"))},
    "dspex.shop.submit.lightweight.predict._INBOX_operator.0": set(),
    "dspex.shop.answer.lightweight._INBOX_caller.0": {"worker", "operator"},
    "dspex.shop.answer.gpu._INBOX_caller.0": {"operator"},
    **{f"dspex.shop.notice.{pool}._INBOX_caller.0": {*who} for pool, who in (("lightweight", ["worker"]), ("gpu", []))},
    "dspex.shop.control.lightweight": {"caller", "operator"},
    **{f"dspex.shop.control.{rest}": {"operator"} for rest in ("gpu", "lightweight.manage", "gpu.to.p1")},
    "dspex.shop.control.lightweight.to.p1": {"operator", "worker"},
    "dspex.bank.log.triage.s1.0": set(),
    "dspex.shop.key.0": OWNERS,
    f"$KV.DSPEX_{APP}.engine.a": OWNERS,
    f"$KV.DSPEX_{APP}.size.lightweight": OWNERS,
    **{f"$KV.DSPEX_{APP}.{kind}.lightweight.a": {*OWNERS, "worker"} for kind in ("pool", "held")},
    **{f"$KV.DSPEX_{APP}.{kind}.gpu.a": OWNERS for kind in ("pool", "held")},
    **{f"$KV.DSPEX_{APP}_{key}": OWNERS for key in ("applied.manifest.triage.1", "applied.paused.triage.1", "kept.score.a.b")},
    f"$KV.DSPEX_{APP}_sessions.a": {*OWNERS, "worker", "caller"},
    **{f"$KV.DSPEX_{APP}_cache.12.{pool}.0": {*OWNERS, *who} for pool, who in (("lightweight", ["worker"]), ("gpu", []))},
    **{f"$JS.API.{verb}.{KV}_kept": OWNERS for verb in ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET")},
    "$KV.DSPEX_bank_applied.manifest.triage.1": set(),
    f"$O.DSPEX_{APP}_payloads.C.0": {*OWNERS, "worker"},
    f"$O.DSPEX_{APP}_payloads.M.0": {*OWNERS, "worker"},
    "$JS.API.INFO": {*OWNERS, "worker", "caller", "reader", "approver"},
    "$JS.API.STREAM.NAMES": {*OWNERS, "reader"},
    "$JS.API.STREAM.LIST": set(),
    f"$JS.API.STREAM.INFO.{S}": {*OWNERS, "worker", "reader", "approver"},
    f"$JS.API.STREAM.INFO.{KV}": {*OWNERS, "worker"},
    f"$JS.API.STREAM.INFO.{APPLIED}": {*OWNERS, "caller", "worker", "approver"},
    **{f"$JS.API.STREAM.{verb}.{KV}_sessions": {*OWNERS, "caller", "worker"} for verb in ("INFO", "MSG.GET")},
    f"$JS.API.STREAM.INFO.{S}_keys": {*OWNERS, "worker", "publisher", "caller"},
    f"$JS.API.STREAM.MSG.GET.{S}_keys": OWNERS,
    f"$JS.API.STREAM.MSG.DELETE.{S}_keys": OWNERS,
    f"$JS.API.STREAM.MSG.GET.{S}": {*OWNERS, "worker", "approver"},
    f"$JS.API.STREAM.MSG.GET.{KV}": {*OWNERS, "worker"},
    f"$JS.API.STREAM.MSG.GET.{APPLIED}": {*OWNERS, "caller", "worker", "approver"},
    **{f"$JS.API.STREAM.MSG.GET.{of}": {*OWNERS, "worker"} for of in (OBJ, f"{S}_requests")},
    f"$JS.API.DIRECT.GET.{S}": {*OWNERS, "approver"},
    **{f"$JS.API.{verb}.{S}_answers": OWNERS for verb in ("STREAM.MSG.GET", "DIRECT.GET", "STREAM.INFO")},
    f"{ANSWERS}.lightweight._INBOX_caller.0": {*OWNERS, "caller"},
    f"{ANSWERS}.gpu._INBOX_caller.0": OWNERS,
    f"{ANSWERS}.lightweight._INBOX_other.0": OWNERS,
    f"{ANSWERS}.lightweight.*.0": OWNERS,
    f"$JS.API.DIRECT.GET.{S}.dspex.shop.dead._submit.call._INBOX_caller.0": {*OWNERS, "approver", "caller"},
    f"$JS.API.DIRECT.GET.{S}.dspex.shop.dead._submit.call._INBOX_other.0": {*OWNERS, "approver"},
    f"$JS.API.DIRECT.GET.{S}.dspex.shop.dead.triage.classify": {*OWNERS, "approver"},
    f"$JS.API.DIRECT.GET.{S}.shop.out": {*OWNERS, "approver"},
    f"$JS.API.DIRECT.GET.{KV}": {*OWNERS, "worker"},
    f"$JS.API.DIRECT.GET.{APPLIED}": {*OWNERS, "caller", "worker", "approver"},
    **{
        f"$JS.API.STREAM.{verb}.{of}": OWNERS
        for verb in ("CREATE", "UPDATE", "PURGE", "MSG.DELETE")
        for of in (S, KV, APPLIED, OBJ)
    },
    **{f"$JS.API.STREAM.DELETE.{name}": {"operator"} for name in (S, KV, APPLIED, OBJ, f"{S}_sources")},
    **{f"$JS.API.STREAM.{verb}.SHOP_OUT": OWNERS for verb in ("INFO", "CREATE", "UPDATE")},
    **{f"$JS.API.STREAM.{verb}.SHOP_OUT": set() for verb in ("PURGE", "DELETE", "MSG.GET")},
    **{f"$JS.API.STREAM.{what}": set() for what in ("CREATE.mine", "INFO.DSPEX_bank", f"SNAPSHOT.{S}", f"LEADER.STEPDOWN.{S}")},
    f"$JS.API.CONSUMER.CREATE.{S}.any": OWNERS,
    f"$JS.API.CONSUMER.CREATE.{S}.any.shop.out": OWNERS,
    f"$JS.API.CONSUMER.CREATE.{S}.INBOX_reader-0": OWNERS,
    f"$JS.API.CONSUMER.CREATE.{S}.INBOX_reader-0.shop.out": {*OWNERS, "reader"},
    f"$JS.API.CONSUMER.CREATE.{S}.INBOX_reader-0.shop.other": OWNERS,
    f"$JS.API.CONSUMER.CREATE.{S}.INBOX_approver-0": {*OWNERS, "approver"},
    f"$JS.API.CONSUMER.CREATE.{S}.INBOX_approver-0.shop.out": {*OWNERS, "approver"},
    f"$JS.API.CONSUMER.DURABLE.CREATE.{S}.INBOX_reader-0": set(),
    f"$JS.API.CONSUMER.MSG.NEXT.{S}.INBOX_reader-0": {*OWNERS, "reader"},
    f"$JS.API.CONSUMER.MSG.NEXT.{S}.work-lightweight-1": {*OWNERS, "worker"},
    f"$JS.API.CONSUMER.MSG.NEXT.{S}.work-gpu-1": OWNERS,
    f"$JS.API.CONSUMER.DELETE.{S}.work-lightweight-1": OWNERS,
    f"$JS.API.CONSUMER.DELETE.{S}.INBOX_reader-0": {*OWNERS, "reader"},
    f"$JS.API.CONSUMER.INFO.{S}.work-lightweight-1": {*OWNERS, "worker"},
    **{f"$JS.API.CONSUMER.{verb}.{S}": set() for verb in ("NAMES", "LIST")},
    f"$JS.ACK.{S}.work-lightweight-1.1.1.1.1.0": {"worker"},
    f"$JS.ACK.{S}.work-gpu-1.1.1.1.1.0": set(),
    **{f"_INBOX{user}.one": set() for user in ("", "_engine", "_caller")},
    "$SYS.REQ.SERVER.PING": set(),
    "$SYS.REQ.USER.INFO": set(ROLES),
    "$SRV.PING": {"operator"},
    "$SRV.STATS.dspex-shop-lightweight": {"operator", "caller"},
    "$SRV.STATS.dspex-shop-gpu": {"operator"},
}
HEARD: Mapping[str, Collection[str]] = {
    ">": set(),
    "_INBOX.>": set(),
    **{f"_INBOX_{role}.>": {role} for role in ROLES},
    "dspex.>": set(),
    "shop.in": set(),
    "shop.out": set(),
    "dspex.shop.call.lightweight.>": {"worker"},
    "dspex.shop.call.gpu.>": set(),
    "dspex.shop.notice.lightweight._INBOX_caller.c.*": {"caller"},
    "dspex.shop.notice.lightweight._INBOX_other.c.*": set(),
    "dspex.shop.notice.gpu._INBOX_caller.c.*": set(),
    "dspex.shop.notice.>": set(),
    "dspex.shop.answer.>": set(),
    **{f"dspex.shop.control.lightweight{rest}": {"worker"} for rest in ("", ".manage", ".to.p1")},
    "dspex.shop.control.gpu.to.p1": set(),
    "$SRV.PING": {"worker"},
    "$SRV.*.dspex-shop-lightweight": {"worker"},
    "$SRV.*.dspex-shop-gpu": set(),
    "dspex.shop.work.>": set(),
    "dspex.shop.record.>": set(),
    "$KV.>": set(),
    "$JS.API.>": set(),
}


def may(subject: str, roles: Collection[str]) -> Collection[str]:
    """Those of a table, and the gateway, which acts for publishers, callers and operators, and emits to no sink."""
    emits = subject == "shop.out" or subject.endswith(".SHOP_OUT")
    acts = (role for role in ("publisher", "caller", "operator") if f"_INBOX_{role}" not in subject and not emits)
    return {*roles, "gateway"} if not {*acts}.isdisjoint(roles) else roles


def permissions(project: Project, role: str) -> str:
    """A user for the server's configuration, as the verb prints it."""
    done = project.here("server", "permissions", "--role", role, *OPTIONS[role])
    assert done.code == 0, done.err
    return re.sub(r"\$[A-Z_]+_PASSWORD", "p", done.out)


def accounts(project: Project) -> str:
    users = "\n".join(permissions(project, role) for role in ROLES)
    return f"accounts {{ A {{ jetstream: enabled, users: [\n{users}\n{{ user: all, password: p }}\n] }} }}\nno_auth_user: all\n"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with stand_in() as url:
        made = Project(tmp_path, APP, SETTINGS.format(url=url))
        made.write("triage.yaml", TOPOLOGY % CLASSIFY)
        yield made


async def _denied(url: str, role: str) -> tuple[set[str], set[str]]:
    """What a user of a role is refused: to publish, and to hear. In the bare protocol, where the server says so at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    login = {"user": role, "pass": "p", "verbose": False, "pedantic": False, "lang": "test", "version": "0"}

    async def refused(command: str) -> bool:
        writer.write(f"{command}\r\nPING\r\n".encode())
        words: list[bytes] = []
        async with asyncio.timeout(30):
            while not words or words[-1] != b"PONG\r\n":
                words.append(await reader.readline())
                assert words[-1], f"the connection ended at {command!r}: {words}"
        return any(word.startswith(b"-ERR 'Permissions Violation") for word in words)

    try:
        assert not await refused(f"CONNECT {json.dumps(login)}")
        published = {subject for subject in PUBLISHED if await refused(f"PUB {subject} 0\r\n")}
        return published, {subject for n, subject in enumerate(HEARD) if await refused(f"SUB {subject} {n}")}
    finally:
        writer.close()


@pytest.mark.asyncio
async def test_every_role_may_what_it_needs_and_nothing_else(project: Project, tmp_path: Path) -> None:
    async with LocalServer(tmp_path / "server" / "js", port=None, extra_config=accounts(project)) as server:
        found = dict(zip(ROLES, await asyncio.gather(*[_denied(server.url, role) for role in ROLES])))
    wrong = [
        (role, subject, "denied" if role in allowed else "allowed")
        for role, refused in found.items()
        for table, denied in zip((PUBLISHED, HEARD), refused)
        for subject, allowed in table.items()
        if (role in may(subject, allowed)) == (subject in denied)
    ]
    assert wrong == []


KEY = "0123456789abcdef" * 4


def _as(project: Project, url: str, role: str) -> dict[str, str]:
    """The environment of a process of a role. Callers need no key for sealed payloads, all others have it."""
    key = {"SEAL": KEY} if role != "caller" else {}
    return key | {"NATS_URL": url, "NATS_USER": role, "NATS_PASSWORD": "p", "DSPEX_SERVER__INBOX_PREFIX": f"_INBOX_{role}"}


@pytest.mark.long
@pytest.mark.asyncio
async def test_every_role_runs_its_verbs_with_these_rights_and_payloads_that_are_sealed(
    project: Project, tmp_path: Path
) -> None:
    settings = project.folder / "dspex.toml"
    settings.write_text(f'{settings.read_text()}engine = {{ encrypt_key_env = "SEAL", submit = true }}\n')
    project.write("state.json", json.dumps(STATE))
    async with LocalServer(tmp_path / "server" / "js", port=None, extra_config=accounts(project)) as server:
        told = await asyncio.to_thread(_run_all, project, server.url)
    assert "permissions violation" not in told.lower(), told


def _run_all(project: Project, url: str) -> str:
    """Run every verb; what engine and worker told."""

    def run(role: str, *args: str) -> Done:
        return project.here(*args, **_as(project, url, role))

    engine, worker = _as(project, url, "engine"), _as(project, url, "worker")
    with (
        project.start("--json", "run", "--pools", "none", **engine) as one,
        project.start("--json", "worker", "lightweight", **worker) as pool,
    ):
        one.until('"ready"')
        pool.until('"pool ready"')
        for text in ("where is my card", "standin:nonsense"):  # the second ends as a dead letter
            done = run("publisher", "publish", "shop.in", f"text={text}", "--session", "ann")
            assert done.code == 0, done.err
        seen = run("reader", "--json", "watch", "shop.out", "--start", "all", "--count", "1")
        assert (seen.code, [o["subject"] for o in seen.objects()]) == (0, ["shop.out"]), seen.err
        other = run("reader", "--json", "watch", "shop.other", "--start", "all", "--count", "1")
        assert (other.code, other.error()["code"]) == (4, "DX403"), other.err
        for what in ("triage/classify", CLASSIFY):
            called = run("caller", "--json", "call", what, "text=hello")
            assert called.code == 0, called.err
        reads_runs(run, lambda: _submit(project, _as(project, url, "caller") | {"SEAL": KEY}))
        # an engine says what it owns with its next heartbeat
        assert eventually(lambda: run("operator", "status", "--health").code == 0)
        plain = (["status"], ["status", "--health"], ["dlq", "ls"], ["approvals", "ls"], ["doctor"], ["plan"], ["apply"])
        for verb in (*plain, *PAUSING, *(["programs", *v] for v in SAVING), *(["pools", *v] for v in SCALING)):
            done = run("operator", "--json", *verb)
            assert done.code == 0, (verb, done.out, done.err)
        saved = run("caller", "--json", "call", "text -> reply", "text=hello", "--state", "reply@prod")
        assert [one["state"] for one in saved.objects()] == ["reply@1"], saved.err
        job = ["optimize", CLASSIFY, "--metric", "exact_match", "--pool", "lightweight", "--data", "rows.jsonl", "--anyway"]
        project.write("rows.jsonl", '{"text": "a", "intent": "other"}\n{"text": "b", "intent": "other"}\n')
        (made,) = run("operator", "--json", *job, "--save", "made").objects()
        assert (made["saved"], made["train"], made["test"]) == ("made@1", 1, 1)
        caller = _as(project, url, "caller") | {"SEAL": KEY}  # what is submitted is stored, so it is sealed
        refused = project.here("--json", *job, "--save", "others", "-o", "made.json", **caller)
        assert (refused.error()["code"], (project.folder / "made.json").exists()) == ("DX403", True)
        for role in ("worker", "publisher", "caller", "reader", "approver"):
            assert run(role, "--json", "pause", "triage").error()["code"] == "DX403"
            assert run(role, "--json", "programs", "put", "reply", "state.json").error()["code"] == "DX403"
        for role in ROLES:
            assert checked(project, url, role, role)["message"] == f"no more than {role} needs"
        wide = project.here("--json", "doctor", "--role", "reader", "--subject", "shop.out", NATS_URL=url)
        (fault,) = [o for o in wide.objects() if o["check"] == "permissions"]
        assert (wide.code, fault["ok"], "publish >" in fault["message"]) == (1, False, True)
        letters = run("operator", "--json", "dlq", "ls", "--topology", "triage").objects()
        assert len(letters) == 1
        assert run("operator", "dlq", "redrive", str(letters[0]["sequence"])).code == 0
        forgot = run("operator", "--json", "runs", "forget", "--session", "ann", "--yes")
        assert (forgot.code, forgot.objects()) == (0, [{"session": "ann", "keys": 1}]), forgot.err
        assert (one.end(), pool.end()) == (0, 0), one.errors() + pool.errors()
        return one.errors() + pool.errors()


def _submit(project: Project, caller: dict[str, str]) -> None:
    """What a caller submits, it fetches; in one process, and in another one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in caller.items():
            patch.setenv(name, value)
        settings = Settings.load(project.folder / "dspex.toml")
        with dspex.sync.connect(settings=settings) as client:
            at_once, twice = (client.submit(CLASSIFY, {"text": "hello"}, id="one") for _ in range(2))
            failed = client.submit(dspex.predict(CLASSIFY, retry=dspex.Retry(attempts=1)), {"text": "standin:nonsense"})
            result = at_once.result("60s")
            with pytest.raises(dspex.errors.InvalidOutput):
                failed.result("60s")
            with pytest.raises(dspex.errors.NotAllowed):
                at_once.info()
        with dspex.sync.connect(settings=settings) as later:
            assert [later.run(run.id).result("60s") for run in (at_once, twice)] == [result] * 2
    assert (at_once.duplicate, twice.duplicate) == (False, True)


@pytest.mark.parametrize("role", ["publisher", "caller", "reader"])
def test_who_has_nothing_to_commit_writes_nothing_into_the_stream_of_the_commits(tmp_path: Path, role: str) -> None:
    """A server lets fifty batches be begun on a stream: who begins them all, again and again, lets nobody commit."""
    project = Project(tmp_path, APP)
    (found,) = project.here("--json", "server", "permissions", "--role", role, *OPTIONS[role]).objects()
    assert [(p, own) for p in found["publish"] for own in subjects.own_subjects(APP) if subjects.overlap(p, own)] == []


def test_a_publisher_of_what_is_a_sink_is_warned_of(project: Project) -> None:
    good = project.here("server", "permissions", "--role", "publisher", "--subject", "shop.in")
    bad = project.here("server", "permissions", "--role", "publisher", "--subject", "shop.>")
    assert (good.code, good.err, bad.code) == (0, "", 0)
    assert "shop.> is a sink" in bad.err


@pytest.mark.asyncio
async def test_doctor_names_the_right_to_answer_wherever_who_asks_says(tmp_path: Path) -> None:
    """With it and a friend who asks, a user may publish anything."""
    project = Project(tmp_path, APP)
    user = permissions(project, "caller")
    more = user.replace("  permissions: {", "  permissions: { allow_responses: true", 1).replace(
        'user: "caller"', 'user: "more"'
    )
    users = f"{user}\n{more}\n{{ user: all, password: p }}"
    config = f"accounts {{ A {{ jetstream: enabled, users: [\n{users}\n] }} }}\nno_auth_user: all\n"
    async with LocalServer(tmp_path / "server" / "js", port=None, extra_config=config) as server:
        found = {name: await asyncio.to_thread(checked, project, server.url, "caller", name) for name in ("caller", "more")}
    assert (found["caller"]["ok"], found["more"]["ok"]) == (True, False)
    assert found["more"]["message"].endswith("than caller needs: answer whoever asks, wherever that goes (allow_responses)")


def checked(project: Project, url: str, role: str, user: str) -> dict[str, Any]:
    """What doctor says of the permissions of a user."""
    login = {**_as(project, url, role), "NATS_USER": user}
    done = project.here("--json", "doctor", "--role", role, *OPTIONS[role], **login)
    (found,) = [o for o in done.objects() if o["check"] == "permissions"]
    faults = [o for o in done.objects() if not o["ok"] and o["check"] != "permissions" and not o["check"].startswith("lm.")]
    assert faults == []
    return found


def test_doctor_does_not_leave_out_the_check_of_a_role_that_it_was_asked_for(tmp_path: Path) -> None:
    project = Project(tmp_path, APP, 'topologies = ["missing:topology"]\n')
    asked = project.here("--json", "doctor", "--role", "engine")
    assert (asked.code, asked.error()["code"]) == (3, "DX221")
    assert project.here("--json", "doctor").objects()  # all that can be checked is
