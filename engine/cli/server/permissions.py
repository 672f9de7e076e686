"""`dspex server permissions`: what to write into the configuration of a NATS server."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from dspex.bus import subjects
from dspex.bus.errors import ConfigError
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.cli.topology.targets import load

if TYPE_CHECKING:
    from dspex.bus.local.rights import Rights

_ANSWERS, _WITHIN = 8, "10m"  # to one request: a call that streams its answer sends one message after another


class RoleName(StrEnum):
    """Who a user is."""

    ENGINE = "engine"
    WORKER = "worker"
    PUBLISHER = "publisher"
    CALLER = "caller"
    READER = "reader"
    APPROVER = "approver"
    GATEWAY = "gateway"
    OPERATOR = "operator"


_BY_TOPOLOGY = (RoleName.ENGINE, RoleName.OPERATOR, RoleName.PUBLISHER)  # whose rights depend on what topologies say
_NEEDS = {
    RoleName.WORKER: ("--pool",),
    RoleName.CALLER: ("--pool",),
    RoleName.PUBLISHER: ("--subject",),
    RoleName.READER: ("--subject",),
}
_TAKES: dict[RoleName, tuple[str, ...]] = {RoleName.APPROVER: (), RoleName.GATEWAY: ("--pool", "--subject")}


def permissions(
    context: typer.Context,
    role: Annotated[RoleName, typer.Option("--role", help="Who the user is.")],
    user: Annotated[str | None, typer.Option("--user", help="The user's name; default: the role's.")] = None,
    pool: Annotated[list[str] | None, typer.Option("--pool", help="Worker, caller, gateway: a pool; again for more.")] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(
            "--subject",
            help="Publisher, gateway: of a source. Reader: of a sink. Engine, operator: of a sink that no topology names.",
        ),
    ] = None,
    stream: Annotated[
        list[str] | None, typer.Option("--stream", help="Engine, operator: a stream of others that a source reads.")
    ] = None,
    nsc: Annotated[bool, typer.Option("--nsc", help="As a command of nsc, for accounts with JWTs.")] = False,
) -> None:
    """Print the NATS permissions of a role: a user for the server's configuration, or a command of nsc."""
    t = terminal(context)
    name = subjects.token(user or role.value, "user")
    found = rights_of(t, role, name, pool or (), subject or (), stream or ())
    data = {
        "role": role.value,
        "user": name,
        "publish": list(found.publish),
        "subscribe": list(found.subscribe),
        "allow_responses": found.answers,
        "inbox_prefix": found.inbox_prefix,
    }
    t.emit(data, *(_nsc(name, found) if nsc else _config(name, found)))


def rights_of(
    t: Terminal, role: RoleName, user: str, pools: Sequence[str], about: Sequence[str], streams: Sequence[str] = ()
) -> Rights:
    """The rights of a role, with the sinks and streams of the topologies that the settings name. Raises ConfigError."""
    from dspex.bus.local.rights import rights

    _check(role, pools, about, streams)
    about, streams, copies = list(about), list(streams), list[str]()
    graphs = [topology.graph for topology in load(t, None)] if role in _BY_TOPOLOGY and t.settings().topologies else []
    sinks = [node.sink.pattern for graph in graphs for node in graph.sinks]
    if role is RoleName.PUBLISHER:
        for subject in [subject for subject in about if any(subjects.overlap(subject, sink) for sink in sinks)]:
            t.note(
                f"{subject} is a sink: who may publish there can hold up all commits; give publishers a subject of their own"
            )
    else:
        about += sinks
        streams += [node.source.stream for graph in graphs for node in graph.sources if node.source.stream]
        copies += [node.sink.stream for graph in graphs for node in graph.sinks if node.sink.stream]
    s = t.settings()
    sealed = s.engine.encrypt_key_env is not None
    return rights(role.value, s.app, user=user, pools=pools, about=about, streams=streams, copies=copies, sealed=sealed)


def _check(role: RoleName, pools: Sequence[str], about: Sequence[str], streams: Sequence[str]) -> None:
    """Raise ConfigError for what a role needs and has not, or has and does not need."""
    given = {"--pool": pools, "--subject": about, "--stream": streams}
    needs = _NEEDS.get(role, ())
    for needed in [needed for needed in needs if not given[needed]]:
        raise ConfigError(f"a {role.value} is one of something: {needed} is missing", code="DX105", fix=f"add {needed} NAME")
    takes = needs or _TAKES.get(role, ("--subject", "--stream"))
    for option in [option for option, values in given.items() if values and option not in takes]:
        raise ConfigError(f"{option} means nothing for {role.value}", code="DX105", fix="leave it out")
    for pattern in [pattern for pattern in about if not subjects.is_pattern(pattern)]:
        raise ConfigError(
            f"{pattern!r} is not a subject", code="DX105", fix="tokens with dots between them; * and > are wildcards"
        )
    for name in [name for name in streams if not subjects.is_stream_name(name)]:
        raise ConfigError(f"{name!r} is not the name of a stream", code="DX105", fix="nats stream ls shows the names")


def _config(user: str, found: Rights) -> list[str]:
    answers = [f"    allow_responses: {{ max: {_ANSWERS}, expires: {json.dumps(_WITHIN)} }}"] if found.answers else []
    return [
        f"# its processes have the setting server.inbox_prefix = {json.dumps(found.inbox_prefix)}",
        "{",
        f"  user: {json.dumps(user)}, password: ${user.upper().replace('-', '_')}_PASSWORD",
        "  permissions: {",
        *_list("publish", found.publish),
        *_list("subscribe", found.subscribe),
        *answers,
        "  }",
        "}",
    ]


def _list(name: str, patterns: Sequence[str]) -> list[str]:
    # the server's configuration knows no escapes of characters that are not ASCII
    return [f"    {name}: [", *(f"      {json.dumps(pattern, ensure_ascii=False)}" for pattern in patterns), "    ]"]


def _nsc(user: str, found: Rights) -> list[str]:
    """A line for a shell. Raises ConfigError for a subject that nsc would take for several."""
    for pattern in [pattern for pattern in found.publish if not {",", '"'}.isdisjoint(pattern)]:
        raise ConfigError(f"nsc takes no subject with a comma or quotes: {pattern}", code="DX105", fix="leave out --nsc")
    publish, subscribe = (shlex.quote(",".join(patterns)) for patterns in (found.publish, found.subscribe))
    answers = f" --allow-pub-response={_ANSWERS} --response-ttl={_WITHIN}" if found.answers else ""
    return [
        f"# its processes have the setting server.inbox_prefix = {json.dumps(found.inbox_prefix)}",
        f"nsc add user --name '{user}' --allow-pub {publish} --allow-sub {subscribe}{answers}",
    ]
