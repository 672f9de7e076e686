"""Every subject, stream, bucket, consumer and header name of dspex. Nothing else forms one.

Ids are headers, never subject tokens: many distinct subjects in a filtered stream are slow
(nats-server#7852: 8,046 → 235 messages a second), so every token here is of low cardinality.

The application stream does not take all of `dspex.<app>.>`: interactive calls are requests below the same prefix, and a
stream that captured them would answer them with its own acknowledgement (ADR-0003).
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from hashlib import sha256
from typing import Final
from urllib.parse import unquote

from dspex.bus.errors import ConfigError

# -- headers ---------------------------------------------------------------------------------------------------
EVENT_ID: Final = "Dspex-Id"  # id of an event that dspex wrote; outside publishers use Nats-Msg-Id
MESSAGE_ID: Final = "Nats-Msg-Id"  # id of a published event, and JetStream's own deduplication
RUN: Final = "Dspex-Run"
CAUSE: Final = "Dspex-Cause"  # absent on an event that dspex wrote: the run's first event
KEY: Final = "Dspex-Key"
SESSION: Final = "Dspex-Session"
TIME: Final = "Dspex-Time"  # event time, RFC 3339; absent: the stored time
AT: Final = "Dspex-At"  # until when an event of a source waits: RFC 3339, or seconds after it was stored, "+90"
CLAIM_CHECK: Final = "Dspex-Claim-Check"  # SHA-256 of a payload kept in the object store
STORED: Final = "Dspex-Stored"  # "stream:sequence" of the event that a message is about, where it is too large to be in it
RECORD: Final = "Dspex-Record"  # of a request: the message id of its record, for a worker that finds no payload
DECIDE: Final = "Dspex-Decide"  # the operator at which an event waits that a message decides about
LETTER: Final = "Dspex-Letter"  # sequence of the dead letter that a redriven event was in
SEALED: Final = "Dspex-Sealed"  # of a body that only who has the key can read: see bus/serving/keys/keyring.py
SIGNATURE: Final = "Dspex-Signature"  # of a record: see bus/serving/keys/signatures.py
HASH: Final = "Dspex-Hash"  # of a record: see bus/serving/keys/hashes.py
KIND: Final = "Dspex-Kind"  # of a reply to an interactive call: see bus/records.py
HANDED: Final = "Dspex-Handed"  # of a call that a process hands to another one: when it did, in seconds since the epoch
CANCELLED: Final = "Dspex-Cancelled"  # of the dead letter of a call that somebody has cancelled
FALLBACK: Final = "Dspex-Fallback"  # of what was made of a fallback's outputs: the class of the call's error
CONTENT_TYPE: Final = "Content-Type"
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
CLOUD_EVENT: Final = "ce-"  # how headers begin that hold attributes of a CloudEvent
OWN_HEADERS: Final = frozenset({EVENT_ID, MESSAGE_ID, RUN, CAUSE, KEY, SESSION, TIME, AT, CLAIM_CHECK, SEALED, CONTENT_TYPE})

FROM_SERVER: Final = "Nats-"  # how the headers begin that the server adds or reads

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_PATTERN = re.compile(r"(\*|[^\s.*>]+)(\.(\*|[^\s.*>]+))*(\.>)?|>")


def token(name: str, what: str = "name") -> str:
    """`name`, if it can be one token of a subject; ConfigError (DX101) otherwise."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {name!r} cannot be part of a subject", code="DX101", fix="use letters, digits, - and _ only")
    return name


def is_token(name: str) -> bool:
    """Whether `name` can be one token of a subject."""
    return bool(_NAME.fullmatch(name))


# Of an application's streams, buckets and objects: how the names end of all but the first stream and bucket.
_KINDS: Final = frozenset(
    {"sources", "requests", "answers", "keys", "told", "applied", "sessions", "limits", "cache", "kept", "payloads"}
)


@lru_cache(256)
def application(app: str) -> str:
    """`app`, if it can be the name of an application; ConfigError (DX101) otherwise."""
    other, _, kind = token(app, "app").rpartition("_")
    if other and kind in _KINDS:
        what = f"app {app!r} would have the {kind} of an application {other!r} for its own"
        raise ConfigError(what, code="DX101", fix=f"use a name that does not end with _{kind}")
    return app


INBOX: Final = "_INBOX"  # how the subjects begin on which answers and deliveries come


def is_inbox(subject: str) -> bool:
    """Whether an answer may go to `subject`: an inbox, or what a server makes of one for a request of another account.

    Who asks names it, and the server lets those who answer publish there, whatever it is. So it may be no subject that
    anything else reads: a request of a caller could have a worker write the commit log, or delete the stream.
    """
    return subject.startswith((INBOX, "_R_.")) and bool(_SUBJECT.fullmatch(subject)) and subject.isprintable()


def is_subject(subject: str) -> bool:
    """Whether an event can be published to `subject`: no wildcard, empty token, space, nor what nobody can see."""
    return bool(_SUBJECT.fullmatch(subject)) and not subject.startswith(("$", INBOX)) and subject.isprintable()


def is_pattern(pattern: str) -> bool:
    """Whether `pattern` is a subject or a wildcard over subjects."""
    return bool(_PATTERN.fullmatch(pattern)) and not pattern.startswith(("$", INBOX)) and pattern.isprintable()


def is_own(pattern: str) -> bool:
    """Whether a subject, or all that a wildcard takes, is of some application of dspex: nobody else publishes there."""
    return pattern.startswith("dspex.")


@lru_cache(1 << 14)
def matches(pattern: str, subject: str) -> bool:
    """Whether the NATS pattern (`*` one token, `>` the rest) takes the subject."""
    if pattern == subject:
        return True
    want, have = pattern.split("."), subject.split(".")
    for i, part in enumerate(want):
        if part == ">":
            return len(have) > i
        if i >= len(have) or part not in ("*", have[i]):
            return False
    return len(want) == len(have)


def includes(wide: str, narrow: str) -> bool:
    """Whether `wide` takes every subject that the pattern `narrow` takes."""
    want, have = wide.split("."), narrow.split(".")
    for i, part in enumerate(want):
        if part == ">":
            return len(have) > i
        if i >= len(have) or have[i] == ">" or part not in ("*", have[i]):
            return False
    return len(want) == len(have)


@lru_cache(1 << 14)
def overlap(a: str, b: str) -> bool:
    """Whether some subject is taken by both patterns (two streams, or two subjects of one, may not overlap)."""
    left, right = a.split("."), b.split(".")
    for i in range(max(len(left), len(right))):
        x = left[i] if i < len(left) else None
        y = right[i] if i < len(right) else None
        if x == ">":
            return y is not None
        if y == ">":
            return x is not None
        if x is None or y is None or (x != y and "*" not in (x, y)):
            return False
    return True


# -- streams, buckets, consumers ---------------------------------------------------------------------------------
def is_stream_name(text: str) -> bool:
    """Whether the server takes it for the name of a stream."""
    return bool(re.fullmatch(r"[^\s.*>/\\\x00-\x1f\x7f]+", text))


RESERVED: Final = ("DSPEX_", "KV_", "OBJ_")
"""How names of streams begin that are an application's, a bucket's or an object store's."""


def stream(app: str) -> str:
    """The application stream."""
    return f"DSPEX_{application(app)}"


def sources(app: str) -> str:
    """The stream of those sources that no other stream captures and that are nobody's sink."""
    return f"{stream(app)}_sources"


def requests(app: str) -> str:
    """The stream in which calls journal their model and tool requests while they run."""
    return f"{stream(app)}_requests"


def answers(app: str) -> str:
    """The stream with the answers to submitted calls, each where only who submitted it reads it.

    It is not the application's: each answer has a subject of its own, and many of them would slow its readers down.
    """
    return f"{stream(app)}_answers"


def told(app: str) -> str:
    """The stream with what publishers and callers say of themselves that they did.

    It is not the application's: who may write there can fill it, and have so many batches begun that no commit could begin.
    """
    return f"{stream(app)}_told"


def keys(app: str) -> str:
    """The stream with the keys that seal payloads, each of them sealed itself."""
    return f"{stream(app)}_keys"


def key(app: str, name: str) -> str:
    """Where a key of that stream lies; `*` for all."""
    return f"{prefix(app)}.key.{name}"


def bucket(app: str) -> str:
    """The key-value bucket: who is alive, and what is being worked on."""
    return f"DSPEX_{application(app)}"


def applied(app: str) -> str:
    """The key-value bucket of the manifests. Each of its keys takes one value."""
    return f"{bucket(app)}_applied"


def limits(app: str) -> str:
    """The key-value bucket with what is used of limits and budgets."""
    return f"{bucket(app)}_limits"


def cooling(app: str) -> str:
    """Where pools tell each other that a model's provider asked for a pause (core NATS)."""
    return f"{prefix(app)}.cooling"


def sessions(app: str) -> str:
    """The key-value bucket of sessions, one key each."""
    return f"{bucket(app)}_sessions"


def cache(app: str) -> str:
    """The key-value bucket of answers that may be given again."""
    return f"{bucket(app)}_cache"


def kept(app: str) -> str:
    """The key-value bucket of what is kept about runs: scores, and runs that are in no log."""
    return f"{bucket(app)}_kept"


KEPT_RUN: Final = "run"  # how its keys begin that say what is known of a run
KEPT_PART: Final = "part"  # and those under which its file lies, in pieces


def kept_run(id: str) -> str:
    """Where it lies what is known of a kept run. Its id is one word."""
    return f"{KEPT_RUN}.{token(id, 'id of a run')}"


def kept_part(id: str, hash: str, number: int) -> str:
    """A piece of the file of a kept run, of which `hash` is a part of the hash: two files never share one."""
    return f"{KEPT_PART}.{token(id, 'id of a run')}.{hash}.{number}"


SHORTEST_CLASS: Final = 10  # of times to live: 2^10 s
LONGEST_CLASS: Final = 25  # 388 days


def cache_key(pool: str, ttl: float, digest: bytes) -> str:
    """Where an answer lies that may be given again for `ttl` seconds. The first word is the power of two above them: what is
    that old can be removed without being read.
    """
    kind = min(max(SHORTEST_CLASS, math.ceil(math.log2(max(ttl, 1.0)))), LONGEST_CLASS)
    return f"{kind}.{token(pool, 'pool')}.{digest.hex()}"


def buckets(app: str) -> list[str]:
    """All key-value buckets of an application: its own; of manifests, sessions, limits, cached records and kept runs."""
    return [bucket(app), applied(app), *(f"{bucket(app)}_{kind}" for kind in ("sessions", "limits", "cache", "kept"))]


def objects(app: str) -> str:
    """The object store of payloads too large for an event, by content hash."""
    return f"DSPEX_{application(app)}_payloads"


def own_subjects(app: str) -> list[str]:
    """What the application stream captures besides sinks, and sources that are sinks."""
    return [f"{prefix(app)}.{kind}.>" for kind in ("log", "edge", "time", "work", "record", "dead", "audit")]


def reader_name(app: str, topology: str, stage: str, kind: str, owner: str) -> str:
    """What the names of a reader's consumers begin with."""
    return f"dspex-{app}-{topology}-{stage}-{kind}-{owner}"


SIDE_QUEUES: Final = 8  # behind each band of work, for the calls of tenants that have many of them
_PRIORITIES: Final = 3


def side_queues(band: int) -> tuple[int, ...]:
    """The side queues behind a band, which are bands of their own. In the first one are those of before there were others."""
    return tuple(band + _PRIORITIES * n for n in range(1, SIDE_QUEUES + 1))


BANDS: Final = tuple(one for band in range(_PRIORITIES) for one in (band, *side_queues(band)))
"""Of work, the most urgent first: each is followed by its side queues."""


def band(priority: int, *, behind: str | None = None) -> int:
    """The band of a call's priority, 0 (first) to 9: 0 to 3, 4 to 6, 7 to 9. `behind`: a tenant: its side queue there."""
    found = 0 if priority < 4 else 1 if priority < 7 else 2
    return found if behind is None else side_queues(found)[sha256(behind.encode(errors="replace")).digest()[0] % SIDE_QUEUES]


def is_behind(band: int) -> bool:
    """Whether it is a side queue."""
    return band >= _PRIORITIES


def front_of(band: int) -> int:
    """The band that a side queue is behind; a band itself."""
    return band % _PRIORITIES


def work_consumer(pool: str, band: int) -> str:
    """The durable consumer that the workers of a pool share for one band of priority."""
    return f"work-{token(pool, 'pool')}-{band}"


# -- subjects ----------------------------------------------------------------------------------------------------
def prefix(app: str) -> str:
    return f"dspex.{application(app)}"


def log(app: str, topology: str, stage: str, partition: int | str) -> str:
    """The commit log of one stage partition; `*` as partition for all of them."""
    return f"{prefix(app)}.log.{topology}.{stage}.{partition}"


def pieces(app: str, topology: str, stage: str, partition: int | str) -> str:
    """What one log entry cannot hold, right before it."""
    return f"{log(app, topology, stage, partition)}.pieces"


def snapshot(app: str, topology: str, stage: str, partition: int | str) -> str:
    """Snapshots of the tables of one stage partition, written outside commits."""
    return f"{log(app, topology, stage, partition)}.snapshot"


def edge(app: str, topology: str, stage: str, partition: int | str) -> str:
    return f"{prefix(app)}.edge.{topology}.{stage}.{partition}"


DECIDED: Final = ".decide"  # how the subjects of decisions end


def decision(app: str, topology: str, stage: str, partition: int | str) -> str:
    """Where decisions about what waits in a partition are stored. Not on its edge: who may write there may do much more."""
    return f"{edge(app, topology, stage, partition)}{DECIDED}"


def time(app: str, topology: str, stage: str, engine: str) -> str:
    """Where an engine states the watermarks of a stage; `*` for those of all engines."""
    return f"{prefix(app)}.time.{topology}.{stage}.{engine}"


def work(app: str, pool: str, topology: str, operator: str, band: int = 1) -> str:
    """Where the calls of an operator wait for a worker of the pool."""
    return f"{prefix(app)}.work.{token(pool, 'pool')}.{band}.{topology}.{operator.replace('/', '-')}"


def work_pattern(app: str, pool: str, band: int | str = "*") -> str:
    """All work of a pool, or of one band of it: what the band's consumer filters on."""
    return f"{prefix(app)}.work.{token(pool, 'pool')}.{band}.>"


def band_of(app: str, pool: str, subject: str) -> int | None:
    """The band in which a call of the pool waits on `subject`; None where none of the pool's waits there."""
    words = subject.split(".")
    return int(words[4]) if matches(work_pattern(app, pool), subject) and words[4] in map(str, BANDS) else None


def is_work(subject: str) -> bool:
    """Whether calls of some application wait on `subject`."""
    return is_subject(subject) and matches("dspex.*.work.*.*.*.*", subject)


def work_of(app: str, topology: str) -> str:
    """All work of a topology, of every pool."""
    return f"{prefix(app)}.work.*.*.{topology}.*"


def request(app: str, pool: str, call: str) -> str:
    """The journal of one call, in the stream of requests. Here alone an id is a token: it is read by subject only.

    An id that is no token, which no engine makes, and a redriven event may have, is hashed.
    """
    known = call if _NAME.fullmatch(call) else sha256(call.encode()).hexdigest()
    return f"{prefix(app)}.request.{token(pool, 'pool')}.{known}"


def request_pattern(app: str, pool: str = "") -> str:
    """The journals of all calls, or of those of a pool."""
    return f"{prefix(app)}.request.{token(pool, 'pool')}.*" if pool else f"{prefix(app)}.request.>"


def job_end(app: str, pool: str, call: str) -> str:
    """Where it is stored that a job of an optimizer is cancelled, beside the journals: as long as one may be run again. `call`:
    as who submitted it names it; `*` for those of all.
    """
    return f"{prefix(app)}.request.{token(pool, 'pool') if pool != '*' else pool}.end.{call}"


def record(app: str, pool: str, topology: str, stage: str, partition: int | str) -> str:
    """The records of a stage partition's calls; `*` as pool for all of them."""
    return f"{prefix(app)}.record.{pool}.{topology}.{stage}.{partition}"


def pool_of_record(subject: str) -> str:
    """The pool of the calls whose records lie on a subject that `record` made."""
    return subject.split(".")[3]


def interactive_record(app: str, pool: str) -> str:
    """Records of interactive calls, which no stage asked for; `*` as pool for all of them."""
    return f"{prefix(app)}.record.{pool}"


def is_record(subject: str) -> bool:
    """Whether records of some application's calls lie on `subject`."""
    return matches("dspex.*.record.>", subject)


MOST_NAME: Final = 512  # characters of a name in a subject: a server closes the connection over a line of 4096 bytes


def dead(app: str, topology: str, operator: str) -> str:
    """Dead letters of an operator: a source's name may hold wildcards and dots, and that in a frame anything."""
    tokens = re.sub(r"[^A-Za-z0-9_.-]", "_", operator[:MOST_NAME]).split(".")
    return f"{prefix(app)}.dead.{topology}.{'.'.join(token or '_' for token in tokens)}"


def dead_pattern(app: str, topology: str = "*") -> str:
    """All dead letters of a topology, or of the application."""
    return f"{prefix(app)}.dead.{topology}.>"


def of_topology(app: str, topology: str) -> list[str]:
    """All that is stored for a topology but its sinks."""
    kinds = [f"{kind}.{topology}.>" for kind in ("log", "edge", "time", "dead")]
    return [f"{prefix(app)}.{rest}" for rest in (*kinds, f"work.*.*.{topology}.>", f"record.*.{topology}.>")]


TOLD: Final = ("publish", "call", "end")  # verbs of users who have no other right to write to the application's stream


def audit(app: str, verb: str) -> str:
    """What somebody changed with a verb; `*` for all but those of TOLD."""
    return f"{prefix(app)}.{'told' if verb in TOLD else 'audit'}.{verb}"


def told_pattern(app: str) -> str:
    """What somebody did with the verbs of TOLD."""
    return f"{prefix(app)}.told.*"


def redriven(app: str) -> str:
    """Which dead letters were redriven; see engine/log/redriven.py."""
    return f"{prefix(app)}.audit.redriven"


SUBMITTED: Final = "_submit"  # the topology of dspex's own that makes submitted calls; no other can have this name
AD_HOC: Final = "adhoc"  # stands for the topology in the subjects of calls of none, so none can have this name


DESCRIBE: Final = "describe"  # stands for the kind in the subject of who asks what a program is made of


def call(app: str, pool: str, topology: str, operator: str) -> str:
    """Interactive calls of a deployed node (core NATS)."""
    return f"{prefix(app)}.call.{token(pool, 'pool')}.{topology}.{operator.replace('/', '-')}"


def ad_hoc_call(app: str, pool: str, kind: str) -> str:
    """Interactive calls of what is deployed nowhere, by the kind of operator; so permissions can tell callers apart."""
    return f"{prefix(app)}.call.{token(pool, 'pool')}.{AD_HOC}.{kind}"


def described_pattern(app: str) -> str:
    """Questions of what programs are made of, to every pool."""
    return f"{prefix(app)}.call.*.{AD_HOC}.{DESCRIBE}"


def called_topology(subject: str) -> str:
    """The topology whose node is called on a subject; "" for what is deployed nowhere."""
    tokens = subject.split(".")
    return tokens[4] if len(tokens) == 6 and tokens[4] != AD_HOC else ""


def call_pattern(app: str, pool: str) -> str:
    """All interactive calls of a pool: queue group `pool`, members only while they have a free slot."""
    return f"{prefix(app)}.call.{token(pool, 'pool')}.>"


def submit(app: str, pool: str, kind: str, user: str, call: str) -> str:
    """Where a call is submitted, by the kind of operator. `user`: whose it is, as `inbox_user` says. `call`: its own token, so
    that it is submitted once.
    """
    return f"{prefix(app)}.submit.{token(pool, 'pool')}.{token(kind, 'kind') if kind != '*' else kind}.{user}.{call}"


def inbox_user(inbox: str) -> str:
    """Who hears what comes to an inbox, as a token: users who share a prefix (`server.inbox_prefix`) are one."""
    return inbox.partition(".")[0]


def submitted_of_kind(app: str, kind: str, user: str) -> str:
    """What a user submits of one kind, to all pools."""
    return f"{prefix(app)}.submit.*.{token(kind, 'kind')}.{user}.*"


def submitted_by(subject: str) -> tuple[str, str]:
    """Whose submitted call came on a subject of `submit`, and its token."""
    _, user, call = ("", "", *subject.split("."))[-3:]  # anything may stand where an event says on what it came
    return user, call


def answered_at(app: str, subject: str) -> str | None:
    """Where the answer is stored to a submitted call that came on a subject of `submit`; None for another subject."""
    if not is_subject(subject) or not matches(f"{prefix(app)}.submit.*.*.*.*", subject):
        return None
    pool, _, user, call = subject.split(".")[3:]
    return f"{prefix(app)}.answer.{pool}.{user}.{call}"


def answer(app: str, pool: str, user: str, call: str) -> str:
    """Where the answer to a submitted call is stored, by the worker that has made it."""
    return f"{prefix(app)}.answer.{token(pool, 'pool')}.{user}.{call}"


def answer_pattern(app: str, pool: str = "") -> str:
    """The answers of a pool, or all."""
    return f"{prefix(app)}.answer.{token(pool, 'pool')}.>" if pool else f"{prefix(app)}.answer.>"


def notice(app: str, pool: str, user: str, client: str, call: str) -> str:
    """Where a client hears of a call that it has submitted, from the worker that makes it (core NATS)."""
    return f"{prefix(app)}.notice.{token(pool, 'pool')}.{user}.{client}.{call}"


def notice_pattern(app: str, pool: str) -> str:
    """All that the workers of a pool say so."""
    return f"{prefix(app)}.notice.{token(pool, 'pool')}.>"


def notices_of(app: str, user: str) -> str:
    """All that a user hears so."""
    return f"{prefix(app)}.notice.*.{user}.*.*"


def dead_submitted(app: str, user: str, call: str) -> str:
    """Where the dead letter of a submitted call lies: who submitted it reads it there. `call`: `*` for those of all."""
    words = [word if word == "*" else re.sub(r"[^A-Za-z0-9_-]", "_", word[:MOST_NAME]) or "_" for word in (user, call)]
    return ".".join([dead(app, SUBMITTED, "call"), *words])


def submit_pattern(app: str) -> str:
    """All submitted calls: the source of the topology that makes them."""
    return f"{prefix(app)}.submit.>"


def control(app: str, pool: str) -> str:
    """Commands to the processes of a pool, and questions to them (core NATS)."""
    return f"{prefix(app)}.control.{token(pool, 'pool')}"


def manage(app: str, pool: str) -> str:
    """What operators ask of the processes of a pool: to drain, to restart, to look how many they shall be (core NATS).

    Not where callers cancel: who may call a pool may not stop it.
    """
    return f"{control(app, pool)}.manage"


def handed(app: str, pool: str, process: str) -> str:
    """Where a process of a pool gets the calls that another one has for it (core NATS); `*` for all of them."""
    return f"{control(app, pool)}.to.{process}"


SERVICE_VERBS: Final = ("PING", "INFO", "STATS")  # of the NATS service protocol
SERVICE_ERROR: Final = "Nats-Service-Error"  # headers of an answer that is an error: what it says, and a number as HTTP has it
SERVICE_ERROR_CODE: Final = "Nats-Service-Error-Code"


def service(app: str, pool: str) -> str:
    """The name of a pool in the NATS service protocol."""
    return f"dspex-{application(app)}-{token(pool, 'pool')}"


def service_patterns(app: str, pool: str, id: str) -> list[str]:
    """Where a process of a pool is asked as a service. `id`: of the process; `*` for all of them."""
    name = service(app, pool)
    return [*(f"$SRV.{verb}" for verb in SERVICE_VERBS), f"$SRV.*.{name}", f"$SRV.*.{name}.{id}"]


# -- of the server ---------------------------------------------------------------------------------------------------
ACCOUNT_INFO: Final = "$JS.API.INFO"  # ask it for the use and the limits of JetStream
USER_INFO: Final = "$SYS.REQ.USER.INFO"  # and this for one's own permissions


# -- keys of the bucket --------------------------------------------------------------------------------------------
def manifest_prefix(topology: str = "") -> str:
    """How the keys of a topology's manifests begin, or those of all."""
    return f"manifest.{topology}".rstrip(".")


def manifest_key(topology: str, version: int) -> str:
    """One version of a topology's manifest. All are kept."""
    return f"{manifest_prefix(topology)}.{version}"


def manifest_of(key: str) -> str:
    """The topology of a manifest's key."""
    return key.removeprefix("manifest.").rpartition(".")[0]


def pause_prefix(topology: str = "") -> str:
    """How the keys of a topology's pauses begin, or those of all."""
    return f"paused.{topology}".rstrip(".")


def pause_key(topology: str, number: int) -> str:
    """One change of what is paused."""
    return f"{pause_prefix(topology)}.{number}"


def paused_of(key: str) -> tuple[str, int]:
    """The topology and the number of a key of a pause; 0 for what is none."""
    topology, _, number = key.removeprefix("paused.").rpartition(".")
    return topology, int(number) if re.fullmatch(r"[1-9][0-9]{0,14}", number) else 0


def saved_prefix(program: str = "") -> str:
    """How the keys of a program's saved versions begin, or those of all."""
    return f"program.{token(program, 'program') if program else ''}".rstrip(".")


def saved_key(program: str, version: int) -> str:
    """One saved version of a program. All are kept."""
    return f"{saved_prefix(program)}.{version}"


def alias_prefix(program: str = "", alias: str = "") -> str:
    """How the keys of the changes of an alias begin, of all of a program, or of all there are."""
    tokens = [token(name, "program or alias") for name in (program, alias) if name]
    return ".".join(["alias", *tokens])


def alias_key(program: str, alias: str, number: int) -> str:
    """One change of what an alias of a program points to. All are kept."""
    return f"{alias_prefix(program, alias)}.{number}"


_PLAIN: Final = re.compile(rb"[A-Za-z0-9_-]")


def session_key(id: str) -> str:
    """The key of a session: its id, with `=2E` and the like for what no key can have. Raises ConfigError (DX101)."""
    key = "".join(chr(b) if _PLAIN.match(bytes([b])) else f"={b:02X}" for b in id.encode(errors="replace"))
    if not 0 < len(key) <= MOST_NAME:
        fix = f"use 1 to {MOST_NAME} letters and digits"
        raise ConfigError(f"a session cannot have an id of {len(id)} characters", code="DX101", fix=fix)
    return key


def session_of(key: str) -> str:
    """The id of the session that lies under a key."""
    return unquote(key.replace("=", "%"), errors="replace")


def score_key(run: str = "", score: str = "") -> str:
    """Where a score of a run is kept; how the keys of those of a run begin, or of all. `run`, `score`: ids."""
    return ".".join(["score", *(token(word, "run or score") for word in (run, score) if word)])


def scored_run(key: str) -> str:
    """The run of which a score lies under a key."""
    return ("", *key.split("."))[2] if key.count(".") else ""


def work_key(pool: str, band: int) -> str:
    """Since when the consumer of a pool's band of work is there."""
    return f"work.{pool}.{band}"


def torn_key(topology: str) -> str:
    """Up to where the stream was looked at for what torn commits of a topology left."""
    return f"torn.{topology if topology == SUBMITTED else token(topology, 'topology')}"


def limit_key(*words: str) -> str:
    """What is used of a limit, in the bucket of limits. A word that cannot be part of a key is there by its hash."""
    return ".".join(word if _NAME.fullmatch(word) else f"={sha256(word.encode()).hexdigest()[:32]}" for word in words)


def member_key(kind: str, id: str) -> str:
    """Who is alive: `engine.<id>`, `pool.<pool>.<id>`."""
    return f"{kind}.{id}"


PARENTS: Final = "pool"  # how the keys of the processes of all pools begin


def parents(pool: str) -> str:
    """How the keys of the processes of a pool begin: a kind of members."""
    return f"{PARENTS}.{token(pool, 'pool')}"


HELD: Final = "held"  # how the keys begin that say which worker answers the calls of a key
HELD_FOR: Final = 30 * 86400.0  # seconds after its last call for which that is known


def held_pattern(pool: str) -> str:
    """All keys that say which worker of a pool answers the calls of a key."""
    return f"{HELD}.{token(pool, 'pool')}.*"


def held_key(pool: str, affinity: str) -> str:
    """Which worker of a pool answers the calls that have this in common."""
    return f"{HELD}.{token(pool, 'pool')}.{sha256(affinity.encode(errors='replace')).hexdigest()[:32]}"


def size_key(pool: str) -> str:
    """How many children a pool is to have in all, as an operator has set it."""
    return f"size.{token(pool, 'pool')}"
