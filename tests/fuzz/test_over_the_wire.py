"""Each corpus sent to an application that runs, by a user who may do anything: engine, pool and `status` are well behind it.

What lies under a key of the bucket counts until somebody removes it: a manifest or a heartbeat of what is not there is shown.
So these are removed before the application is looked at.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import nats
import pytest
from cli_bench import Project, Running, stand_in
from engine_entries import APP, POOL, TOPOLOGY, close
from entries import ENTRIES
from fuzzing import Entry, cases
from mutations import Case
from waiting import eventually

from dspex.bus import subjects

INPUTS = 200  # of each corpus
PIPELINE = """
dspex: 1
topology: fuzz
sources: { in: { accept: [application/json, application/msgpack, application/vnd.apache.arrow.stream] } }
nodes:
  label: { from: in, predict: "text -> label", retry: { attempts: 1 } }
  ordered: { from: in, predict: "text -> label", order: key, retry: { attempts: 1 } }
sinks: { out: { from: label }, in.order: { from: ordered } }
"""
SETTINGS = """
topologies = ["fuzz.yaml"]
engine.encrypt_key_env = "SEAL"
lm.main = {{ model = "openai/stand-in", base_url = "{url}" }}
"""
LOG, KEYS = subjects.log(APP, TOPOLOGY, "s1", 0), f"$KV.{subjects.bucket(APP)}."
SENT_TO = {
    "source": ["in"],
    "record": [subjects.record(APP, POOL, TOPOLOGY, "s1", 0), subjects.interactive_record(APP, POOL)],
    "edge": [subjects.edge(APP, TOPOLOGY, "s1", 0)],
    "log": [LOG],
    "pieces": [f"{LOG}.pieces", f"{LOG}.snapshot"],
    "work": [
        *(subjects.work(APP, POOL, TOPOLOGY, "label", band) for band in subjects.BANDS),
        subjects.call(APP, POOL, TOPOLOGY, "label"),
        subjects.ad_hoc_call(APP, POOL, "predict"),
    ],
    "control": [subjects.control(APP, POOL)],
    "dead": [subjects.dead(APP, TOPOLOGY, "label")],
    "redriven": [subjects.redriven(APP)],
    "audit": [subjects.audit(APP, verb) for verb in ("publish", "strange")],
    "manifest": [f"$KV.{subjects.applied(APP)}.{subjects.manifest_key('strange', n)}" for n in range(1, 9)],  # a key takes one
    "pause": [f"$KV.{subjects.applied(APP)}.{subjects.pause_key('strange', n)}" for n in range(1, 201)],  # a key takes one
    "saved": [f"$KV.{subjects.applied(APP)}.{subjects.saved_key('strange', n)}" for n in range(1, 201)],
    "alias": [f"$KV.{subjects.applied(APP)}.{subjects.alias_key('strange', 'prod', n)}" for n in range(1, 201)],
    "limit": [f"$KV.{subjects.limits(APP)}.lm.main", subjects.cooling(APP)],
    "heartbeat": [KEYS + subjects.member_key("engine", "strange")],
    "work key": [KEYS + subjects.work_key(POOL, band) for band in subjects.BANDS],
    "key": [subjects.key(APP, f"{n:032x}") for n in range(200)],  # a subject takes one
    "torn key": [KEYS + subjects.torn_key(TOPOLOGY)],
}
ON_THE_BUS = [entry.name for entry in ENTRIES.values() if entry.subject]


@dataclass
class Application:
    """One that runs, with its engine and its pool. `number`: of the last good event."""

    project: Project
    process: Running
    number: Iterator[int]

    def is_well(self) -> None:
        """A good event arrives, a call is answered, and nothing is wrong."""
        text = f"good {next(self.number)}"
        published = self.project.publish(f"text={text}")
        assert published.code == 0, (published.out, published.err, self.process.errors()[-3000:])
        called = self.project.here("--json", "call", "text -> reply", f"text={text}")
        assert called.code == 0, called.err
        assert called.objects()[0]["data"] == {"reply": f"reply of {text}"}
        assert eventually(lambda: self.project.here("status", "--health").out == "healthy\n"), self.process.errors()[-3000:]
        assert [self.project.here("--json", *verb).code for verb in (("dlq", "ls"), ("audit", "ls"))] == [0, 0]


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory, nats_url: str) -> Iterator[Application]:
    with stand_in() as url:
        project = Project(tmp_path_factory.mktemp("fuzz"), APP, SETTINGS.format(url=url), NATS_URL=nats_url, SEAL="k" * 64)
        project.write("fuzz.yaml", PIPELINE)
        project.input = "in"
        with project.start("--json", "run") as process:
            process.until('"ready"')
            one = Application(project, process, itertools.count(1))
            one.is_well()
            yield one
            assert process.end() == 0, process.errors()[-3000:]
    close()


async def _send(url: str, entry: Entry, corpus: Iterable[Case]) -> None:
    """The corpus of an entry point to all subjects where it is read."""
    client = await nats.connect(url)
    targets = itertools.cycle(SENT_TO[entry.subject])
    asked = entry.subject in ("work", "control")
    try:
        await client.jetstream().purge_stream(subjects.stream(APP), subject=subjects.dead_pattern(APP))  # of earlier tests
        for case in corpus:
            to = next(targets)
            reply = client.new_inbox() if asked and ".work." not in to else ""
            await client.publish(to, case.data, headers=case.headers or None, reply=reply)
        for subject in SENT_TO[entry.subject] if entry.subject in ("manifest", "heartbeat") else ():
            await client.request(subject, b"")  # answered once all before it is stored or refused; a purge could overtake it
            await client.jetstream().purge_stream(f"KV_{subject.split('.')[1]}", subject=subject)
        await client.flush()
    finally:
        await client.close()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ON_THE_BUS)
def test_an_application_is_well_after_anybody_sent_it_anything(application: Application, nats_url: str, name: str) -> None:
    corpus = list(itertools.islice(cases(ENTRIES[name], seed=1), INPUTS))
    asyncio.run(_send(nats_url, ENTRIES[name], corpus))
    application.is_well()
