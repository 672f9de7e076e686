"""What `Client.status` gives, and what engines and pools report of themselves. The keys are those of `dspex status --json`."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict  # pydantic checks what engines report, and takes no other one before Python 3.12

from dspex.engine.client.status.limits import LimitRow
from dspex.engine.client.status.routes import LmRow, RouteRow


class Status(TypedDict):
    """An application. `lms`: profiles, and programs that hang; `routes`: which way calls went. Both as its pools know them."""

    server: ServerRow
    engines: list[EngineRow]
    stages: list[StageRow]
    pools: list[PoolRow]
    lms: list[LmRow]
    routes: list[RouteRow]
    operators: list[OperatorRow]
    letters: list[LetterRow]
    limits: list[LimitRow]


class ServerRow(TypedDict):
    """The server and the application's stream. `stream`: None before anything is applied. `max_bytes`: -1 for no limit."""

    url: str
    app: str
    stream: str | None
    messages: int
    bytes: int
    max_bytes: int
    replicas: int


class _Engine(TypedDict):
    """`time`: of the report, in seconds since the epoch. `full`: why the stream takes no commit; "" while it does.

    `health`: "ok", or what is wrong. `heartbeat`: seconds between two reports. `clock`: seconds by which the clock of its
    machine is ahead of the server's. `boot`, `pids`: of its machine, to find out whether process `pid` lives.
    """

    engine: str
    topologies: list[str]
    time: float
    commits: int
    full: str
    health: NotRequired[str]  # an older engine does not report it
    heartbeat: NotRequired[float]
    clock: NotRequired[float]
    host: str
    boot: NotRequired[str]
    pids: str
    pid: int


class EngineRow(_Engine):
    """An engine. `age`: seconds since it reported. `alive`: whether it did so a short while ago and its process is there."""

    age: float
    alive: bool


class EngineReport(_Engine):
    """What an engine writes about itself with every heartbeat."""

    stages: list[StageReport]
    operators: NotRequired[list[OperatorReport]]  # an older engine does not report it
    versions: NotRequired[dict[str, int]]  # topology → version of its manifest


class OperatorReport(TypedDict):
    """One operator in one engine, since its start; see `OperatorRow`. An engine tells 100 of them."""

    topology: str
    node: str
    events: int
    calls: int
    errors: int
    retries: int
    fallbacks: int
    dead_letters: int
    input_tokens: int
    output_tokens: int
    p50: float | None
    cost: float | None
    why: str
    order: NotRequired[str]  # "key", where results are released in the order of keys
    keyless: NotRequired[int]  # of these, events without a key, which keep one order together
    handled: NotRequired[int]  # where times are measured: events that came to it
    seconds: NotRequired[float]  # likewise: that it took, without what lies behind it


class StageReport(TypedDict):
    """One stage in one engine. `partitions`: those that it owns. The counts are since the engine's start.

    `rate`: events a second over the last ten seconds.
    """

    topology: str
    stage: str
    source: str
    stopped: str | None
    paused: NotRequired[bool]  # an older engine does not report it
    events: int
    rate: NotRequired[float]  # an older engine does not report it
    waits_for: NotRequired[dict[str, str]]  # likewise
    left_out: NotRequired[int]  # where the topology builds something from history
    rest: NotRequired[float]  # where its source stops, because another version goes on there
    holds: NotRequired[dict[str, float]]  # likewise
    retries: int
    fallbacks: NotRequired[int]  # an older engine does not report it
    unsigned: NotRequired[int]  # likewise
    dead_letters: int
    partitions: list[PartitionReport]


class PartitionReport(TypedDict):
    """A partition and how far its owner is.

    `epoch`: counts the claims of it. `source`: it has taken its events up to this sequence. `records`: sequence of the last
    record that it has taken. `open_calls`: all of them; `calls`: by pool. `put_off`: events that wait for their time.
    `full`: with the open calls these are too many (engine.max_open_calls), so it admits no other event. `waits_since`: when the
    oldest event with an open call was stored; 0 for none. These four are there only where something is open or put off.
    `approvals`: events that wait for a person, by operator; there only where some do.
    """

    index: int
    epoch: int
    source: int
    records: int
    open_calls: int
    calls: NotRequired[dict[str, int]]
    put_off: NotRequired[int]
    full: NotRequired[bool]
    waits_since: NotRequired[float]
    approvals: NotRequired[dict[str, int]]


class GateRow(TypedDict):
    """Who keeps a stage from admitting events.

    Attributes:
        open_calls, put_off: in the partitions that are full, together. calls: of these calls, by pool.
        stream: why sources wait for room in the application's stream, or nothing can be committed; "" where that is not so.
        sources: those that its source waits for: "table", a `lookup` reads it first; "behind", it is far behind in event time;
            and "unread": a `key_by`, behind which too much is not read yet.
    """

    open_calls: int
    put_off: int
    calls: dict[str, int]
    stream: str
    sources: dict[str, str]


class StageRow(TypedDict):
    """A stage.

    Attributes:
        lag: events of its source behind what all of its partitions have read.
        oldest: seconds since the first event was stored that is not read, or whose call is open; None where none waits, or
            where that cannot be told, as `lag` is.
        calls: those that are open, by pool. open_calls: all of them.
        put_off: events that wait for their time (publish at= and after=, RetryLater).
        approvals: events that wait for a person's decision, by operator.
        full: partitions that admit no event because too many calls are open and events put off (engine.max_open_calls).
        gate: who keeps it from admitting events; None where it admits them in all partitions.
        holds: operators (or its source) that hold the watermark with what is still to come out of them, such as open calls and
            events that wait: by how many seconds of event time what follows them is held back.
        unowned: partitions without an owner.
        events, retries, fallbacks: since the engines that run it were started. rate: events a second, of late; None where
            no engine tells it.
        unsigned: likewise, records that were passed over, because their signature was not right.
        left_out: likewise, results of history that went no further, since they came about before the boundary of a lane.
        dead_letters: of its whole topology, those that are stored now.
        stopped: why, if it is.
        rests_until: its source stands still, so that a version can go on exactly there (`dspex apply --backfill`): when it goes
            on by itself if no version comes (RFC 3339); else None.
        paused: somebody has paused it: nothing is admitted, and what is open comes to its end. paused_until: when it goes on by
            itself (RFC 3339); None: when somebody resumes it. admits: an engine that runs it admits events, and may not know of
            a pause yet; None where no engine runs it.
        dropped: the topology has its source no more: it runs until nothing of it is left to do, and is then shown no more.
    """

    topology: str
    stage: str
    source: str
    stream: str
    lag: int | None
    oldest: float | None
    open_calls: int
    calls: dict[str, int]
    put_off: int
    approvals: dict[str, int]
    full: int
    gate: GateRow | None
    holds: dict[str, float]
    owners: list[str]
    partitions: int
    unowned: int
    events: int
    retries: int
    fallbacks: int
    unsigned: int
    left_out: int
    dead_letters: int
    stopped: str | None
    rests_until: str | None
    paused: bool
    paused_until: str | None
    admits: bool | None
    dropped: bool
    rate: float | None


class OperatorRow(OperatorReport):
    """What an operator did since the engines that run it were started.

    Attributes:
        pool: of its calls; None for one that makes none.
        events: for which it has ended, with outputs, a fallback or a dead letter. calls: executions, of which `errors` failed.
        p50: seconds that half of the last calls took at most. input_tokens, output_tokens, cost (USD, None: not known): of all.
        why: why it fell back last.
        dead_letters: that were made; those that wait are in `letters`.
        handled, seconds: there where engines measure them (`dspex run --profile`, and where metrics are exported): events that
            came to it, and its time in engines, without what lies behind it. What workers take is in `p50`.
    """

    pool: str | None


class LetterRow(TypedDict):
    """Dead letters that wait. `oldest`: seconds since the first of them was given up. None: too many to be told apart."""

    topology: str | None
    node: str | None
    reason: str | None
    code: str | None
    count: int
    oldest: float | None


class BatchStatusRow(TypedDict):
    """A batch that calls of a pool's process wait for, at the provider of a profile.

    Attributes:
        id: the provider's; "" while it is gathered. status: the provider's word, or "gathering".
        calls: those that wait in this process. of: its requests, done: those that have an answer; 0: not known.
    """

    lm: str
    id: str
    status: str
    calls: int
    of: int
    done: int


class PoolRow(TypedDict):
    """One process of a pool; for a pool that has none, a row whose `id` is None. `ready`: workers that take calls."""

    pool: str
    id: str | None
    host: str | None
    pid: int | None
    size: int
    slots: int
    busy: int
    ready: int
    restarts: int
    waiting: NotRequired[int]  # accepted calls that have no slot yet
    of: NotRequired[int | None]  # workers that all processes of the pool are to have together; None: each has its own number
    failed: NotRequired[bool]
    draining: NotRequired[bool]
    served: NotRequired[int]  # calls that it has answered, interactive ones included
    started: NotRequired[float]
    dspy_version: NotRequired[str]
    python: NotRequired[str]
    programs: NotRequired[dict[str, object]]
    children: NotRequired[list[dict[str, object]]]
    model_servers: NotRequired[list[int]]
    refused: NotRequired[int]  # requests that are none
    lost_records: NotRequired[int]  # answers that could not be stored
    cache: NotRequired[dict[str, int]]  # answers and bytes in memory; hits, misses: of the calls with `cache`
    lms: NotRequired[list[LmRow]]
    routes: NotRequired[list[RouteRow]]
    batches: NotRequired[list[BatchStatusRow]]
    memory: NotRequired[dict[str, object]]  # what a worker process may have ("allowed"), and who holds it to that ("by")
