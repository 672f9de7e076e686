"""What each role of an application needs of a NATS server, and nothing besides.

One table: `dspex server permissions` prints it, and the tests run every role with exactly these rights on a real server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from dspex.bus import subjects
from dspex.bus.nats.consumer import listed
from dspex.bus.nats.streams import covers
from dspex.bus.serving.programs.optimizers import OPTIMIZE

UserRole: TypeAlias = Literal["engine", "worker", "publisher", "caller", "reader", "approver", "gateway", "operator"]
ROLES: Final[tuple[UserRole, ...]] = get_args(UserRole)
_LOOK: Final = ("STREAM.INFO.{}", "STREAM.MSG.GET.{}", "DIRECT.GET.{}", "DIRECT.GET.{}.>")
_READ: Final = (*_LOOK, "CONSUMER.CREATE.{}.>", "CONSUMER.INFO.{}.>", "CONSUMER.DELETE.{}.>", "CONSUMER.MSG.NEXT.{}.>")
_KEEP: Final = ("STREAM.CREATE.{}", "STREAM.UPDATE.{}", "STREAM.PURGE.{}", "STREAM.MSG.DELETE.{}")


@dataclass(frozen=True)
class Have:
    """What the server lets a connection do: what is allowed, without what is denied of it. `answers`: as in Rights."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False

    @staticmethod
    def read(answer: Mapping[str, Any]) -> Have | None:
        """What the server says to `subjects.USER_INFO`; None where it says nothing that can be read."""
        found = answer.get("data")
        if not isinstance(found, dict):
            return None
        permissions = found.get("permissions") or {}
        allowed = [(permissions.get(kind) or {}).get("allow") or [">"] for kind in ("publish", "subscribe")]
        publish, subscribe = (tuple(str(pattern) for pattern in patterns) for patterns in allowed)
        return Have(publish, subscribe, bool(permissions.get("responses")))


@dataclass(frozen=True)
class Rights:
    """Patterns of subjects that a user may publish and subscribe to.

    Attributes:
        answers: whether it may also answer what it receives, wherever that goes.
        inbox_prefix: the setting that its processes need, `server.inbox_prefix`.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool
    inbox_prefix: str

    def beyond(self, have: Have) -> list[str]:
        """What a user has that is not among these: patterns, each with what may be done there."""
        more = [f"publish {p}" for p in have.publish if not any(covers(right, p) for right in self.publish)]
        more += ["answer whoever asks, wherever that goes (allow_responses)"] if have.answers and not self.answers else []
        return more + [f"subscribe {p}" for p in have.subscribe if not any(covers(right, p) for right in self.subscribe)]


def rights(
    role: UserRole,
    app: str,
    *,
    user: str,
    pools: Sequence[str] = (),
    about: Sequence[str] = (),
    streams: Sequence[str] = (),
    copies: Sequence[str] = (),
    sealed: bool = False,
) -> Rights:
    """The rights of a user.

    Args:
        user: its name, of letters, digits, - and _; its inbox is named after it.
        pools: whose work it does (worker), or whom it may call (caller, gateway).
        about: subjects: of sinks (engine, reader), of sources (publisher, gateway).
        streams: that are read and are not the application's own, such as that of a source that others have made (engine).
        copies: streams that are public copies of sinks (engine).
        sealed: whether the payloads are; who seals adds keys, and who opens reads them.
    """
    prefix = f"{subjects.INBOX}_{user}"
    publish: dict[UserRole, Iterator[str]] = {  # lazy: the others are never run
        "engine": _engine(app, about, streams, copies),
        "operator": _operator(app, prefix, about, streams, copies),
        "worker": (right for pool in pools for right in _worker(app, pool)),
        "publisher": _publisher(app, about),
        "caller": _caller(app, prefix, pools),
        "reader": _reader(app, prefix, about),
        "approver": _approver(app, prefix),
        "gateway": _gateway(app, prefix, pools, about),
    }
    notices = [subjects.notice(app, pool, prefix, "*", "*") for pool in pools]
    calls = [s for pool in pools for s in (subjects.call_pattern(app, pool), subjects.control(app, pool))]
    calls += [s for pool in pools for s in (subjects.manage(app, pool), subjects.handed(app, pool, "*"))]
    calls += [s for pool in pools for s in subjects.service_patterns(app, pool, "*")]
    hears: dict[UserRole, Sequence[str]] = {
        "worker": [*calls, subjects.cooling(app)],
        "caller": notices,
        "gateway": notices,
        "operator": [subjects.notices_of(app, prefix)],
    }
    subscribe = [f"{prefix}.>", *hears.get(role, ())]
    more = _sealed(app, role) if sealed else ()
    return Rights((subjects.USER_INFO, *dict.fromkeys([*publish[role], *more])), tuple(subscribe), role == "worker", prefix)


def _api(patterns: Sequence[str], stream: str) -> Iterator[str]:
    return (f"$JS.API.{pattern.format(stream)}" for pattern in patterns)


def _kept(app: str) -> list[str]:
    """The streams of an application, also those that hold its buckets and its objects."""
    buckets = [f"KV_{name}" for name in subjects.buckets(app)]
    others = [subjects.sources(app), subjects.requests(app), subjects.answers(app), subjects.told(app), subjects.keys(app)]
    return [subjects.stream(app), *others, *buckets, f"OBJ_{subjects.objects(app)}"]


def _values(app: str) -> Iterator[str]:
    yield from (f"$KV.{name}.>" for name in subjects.buckets(app))
    yield f"$O.{subjects.objects(app)}.>"


def _seals(app: str) -> str:
    """Who may look here knows whether it needs a key."""
    return f"$JS.API.STREAM.INFO.{subjects.keys(app)}"


def _sealed(app: str, role: UserRole) -> Iterator[str]:
    if role in ("worker", "publisher", "caller", "reader", "approver", "gateway"):
        yield from _api(("STREAM.INFO.{}", "STREAM.MSG.GET.{}"), subjects.keys(app))
    if role in ("worker", "publisher", "caller", "gateway"):
        yield subjects.key(app, "*")


def _engine(app: str, sinks: Sequence[str], streams: Sequence[str], copies: Sequence[str]) -> Iterator[str]:
    yield subjects.ACCOUNT_INFO
    yield "$JS.API.STREAM.NAMES"  # whose stream a subject is
    for name in _kept(app):
        yield from _api((*_READ, *_KEEP), name)
    for name in streams:
        yield from _api(_READ, name)
    for name in copies:
        yield from _api(("STREAM.INFO.{}", "STREAM.CREATE.{}", "STREAM.UPDATE.{}"), name)
    yield from _values(app)
    yield from (f"{subjects.prefix(app)}.{kind}.>" for kind in ("log", "edge", "time", "work", "dead"))
    yield subjects.key(app, "*")
    yield subjects.audit(app, "apply")
    yield from sinks


def _publisher(app: str, sources: Sequence[str]) -> Iterator[str]:
    yield from (*sources, subjects.audit(app, "publish"), _seals(app))


def _gateway(app: str, prefix: str, pools: Sequence[str], sources: Sequence[str]) -> Iterator[str]:
    """Whom it acts for is its own affair, so it may what all of them may; but it emits nothing to sinks."""
    yield from _publisher(app, sources)
    yield from _caller(app, prefix, pools)
    yield from _operator(app, prefix, (), (), ())


def _operator(app: str, prefix: str, sinks: Sequence[str], streams: Sequence[str], copies: Sequence[str]) -> Iterator[str]:
    yield from _engine(app, sinks, streams, copies)
    for name in _kept(app):
        yield from _api(("STREAM.DELETE.{}",), name)
    yield from (f"{subjects.prefix(app)}.{kind}.>" for kind in ("audit", "told", "control"))
    yield f"{subjects.prefix(app)}.answer.>"  # the error of a submitted call whose dead letter is dropped
    yield "$SRV.>"
    yield subjects.described_pattern(app)
    yield subjects.submitted_of_kind(app, OPTIMIZE, prefix)  # who saves what a job has made can have it made
    yield subjects.job_end(app, "*", "*")


def _speaks(app: str) -> Iterator[str]:
    """Whoever takes part in a session may read and change every one."""
    yield from _api(_LOOK, f"KV_{subjects.sessions(app)}")
    yield f"$KV.{subjects.sessions(app)}.>"


def _worker(app: str, pool: str) -> Iterator[str]:
    stream, objects = subjects.stream(app), subjects.objects(app)
    yield subjects.ACCOUNT_INFO
    for band in subjects.BANDS:
        consumer = subjects.work_consumer(pool, band)
        yield f"$JS.API.CONSUMER.INFO.{stream}.{consumer}"
        yield f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        yield f"$JS.ACK.{stream}.{consumer}.>"
    yield from _api(("STREAM.INFO.{}", "STREAM.MSG.GET.{}"), stream)  # whether a record that is there is its own
    yield from _api(_LOOK, f"KV_{subjects.applied(app)}")  # what deployed nodes run
    yield from _api(_LOOK, f"KV_{subjects.bucket(app)}")  # how many there shall be of its pool, and which others there are
    yield f"$KV.{subjects.bucket(app)}.{subjects.parents(pool)}.*"
    yield from (f"$KV.{subjects.bucket(app)}.{subjects.held_pattern(pool)}", subjects.handed(app, pool, "*"))
    yield from _api(_LOOK, f"KV_{subjects.limits(app)}")  # what all pools use of limits
    yield from (f"$KV.{subjects.limits(app)}.>", subjects.cooling(app))
    yield from _speaks(app)
    yield from _api(("STREAM.INFO.{}", "STREAM.MSG.GET.{}"), f"KV_{subjects.cache(app)}")
    yield f"$KV.{subjects.cache(app)}.*.{pool}.*"  # answers of its own pool
    yield from (subjects.interactive_record(app, pool), f"{subjects.interactive_record(app, pool)}.>")
    yield subjects.request_pattern(app, pool)
    yield from (subjects.answer_pattern(app, pool), subjects.notice_pattern(app, pool))
    yield from _api(("STREAM.MSG.GET.{}",), subjects.requests(app))  # what an earlier attempt at a call has journaled
    yield from _api(_LOOK, f"OBJ_{objects}")
    yield f"$O.{objects}.>"
    yield _seals(app)


def _caller(app: str, prefix: str, pools: Sequence[str]) -> Iterator[str]:
    yield subjects.ACCOUNT_INFO
    yield from (subjects.audit(app, "call"), subjects.audit(app, "end"))
    yield from _speaks(app)
    yield _seals(app)
    yield from _api(_LOOK, f"KV_{subjects.applied(app)}")  # which nodes there are
    yield f"$JS.API.DIRECT.GET.{subjects.stream(app)}.{subjects.dead_submitted(app, prefix, '*')}"
    for pool in pools:
        yield from (subjects.call_pattern(app, pool), subjects.control(app, pool))
        yield subjects.submit(app, pool, "*", prefix, "*")  # in its own name, and so its answers are its own
        yield subjects.job_end(app, pool, "*")
        yield f"$JS.API.DIRECT.GET.{subjects.answers(app)}.{subjects.answer(app, pool, prefix, '*')}"
        yield from (f"$SRV.*.{subjects.service(app, pool)}", f"$SRV.*.{subjects.service(app, pool)}.*")


def _reader(app: str, prefix: str, sinks: Sequence[str]) -> Iterator[str]:
    stream = subjects.stream(app)
    yield subjects.ACCOUNT_INFO
    yield "$JS.API.STREAM.NAMES"
    yield f"$JS.API.STREAM.INFO.{stream}"
    for consumer in listed(prefix):  # the filter in the subject is what limits it to these sinks
        yield from (f"$JS.API.CONSUMER.CREATE.{stream}.{consumer}.{sink}" for sink in sinks)
        yield f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        yield f"$JS.API.CONSUMER.DELETE.{stream}.{consumer}"


def _approver(app: str, prefix: str) -> Iterator[str]:
    """What waits is seen in the logs, and so all that the application's stream has."""
    stream = subjects.stream(app)
    yield subjects.ACCOUNT_INFO
    yield from _api(_LOOK, stream)
    for consumer in listed(prefix):  # with another name it could change what workers take
        yield from _api(
            ("CONSUMER.CREATE.{}", "CONSUMER.CREATE.{}.>", "CONSUMER.MSG.NEXT.{}", "CONSUMER.DELETE.{}"), f"{stream}.{consumer}"
        )
    yield from _api(_LOOK, f"KV_{subjects.applied(app)}")  # which operators wait, and where
    yield subjects.audit(app, "decide")
    yield subjects.decision(app, "*", "*", "*")
