"""What is looked at without the values of secret fields, whatever names those have by now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dspex.bus.errors import RunNotFound
from dspex.bus.serving.keys.secret_fields import Secrets, in_clear
from dspex.bus.subjects import SUBMITTED
from dspex.engine.client.run import FULL_ID
from dspex.engine.client.runs.then import masking
from dspex.engine.graph.submitted import NODE, secrets_in

if TYPE_CHECKING:
    from dspex.bus.message import Event
    from dspex.engine.client.client import Client
    from dspex.engine.client.letters import DeadLetter
    from dspex.engine.client.runs.steps import Step
    from dspex.engine.client.status.approvals import Approval
    from dspex.engine.client.status.sessions import Turn
    from dspex.engine.client.status.state import KeyState


async def secrets_of(c: Client) -> Secrets:
    """What is secret in the topologies of an application. Nothing for who has no key: it is stored nowhere in clear text."""
    if in_clear(c.bus):
        return Secrets(())
    applied = await c.manifests()
    return Secrets(frozenset[str]().union(*(one.secrets for one in applied.values())))


async def in_run(c: Client, secrets: Secrets, run: str) -> Secrets:
    """The same, with what a run has that is secret: what comes of it may quote that. `run`: its full id."""
    if len(run) < FULL_ID or not run.isprintable():
        return secrets
    try:
        return secrets | masking.secrets_of(await c.run(run).tree())
    except RunNotFound:  # nothing reads what was published, or it is told no more
        return secrets


async def event(c: Client, secrets: Secrets, one: Event[Any]) -> Event[Any]:
    """An event that is watched, as it is shown."""
    known = await in_run(c, secrets, one.run) if secrets or one.subject == f"{SUBMITTED}/{NODE}" else secrets
    return replace(one, data=value(known, one.data))


def step(secrets: Secrets, one: Step) -> Step:
    """An attempt at a call, as it is shown."""
    names = ("inputs", "outputs", "error", "exchanges")
    known = learned(secrets, *(getattr(one, name) for name in names))
    return replace(one, **{name: known.masked(getattr(one, name)) for name in names})


def letter(secrets: Secrets, d: DeadLetter) -> DeadLetter:
    """A dead letter as it is shown."""
    known = learned(secrets, d.event.data)
    event = replace(d.event, data=known.hide(d.event.data))
    text = known.text
    return replace(d, event=event, message=text(d.message), fix=text(d.fix), traceback=text(d.traceback))


async def whole_letter(c: Client, secrets: Secrets, d: DeadLetter) -> DeadLetter:
    """The same for one that is shown alone: its error may quote what its event has not got."""
    return letter(await in_run(c, secrets, d.run) if secrets or d.topology == SUBMITTED else secrets, d)


def approval(secrets: Secrets, one: Approval) -> Approval:
    """What waits for a decision, as it is shown."""
    known = learned(secrets, one.event.data, one.shown)
    return replace(one, event=replace(one.event, data=known.hide(one.event.data)), shown=known.hide(one.shown))


def state(secrets: Secrets, one: KeyState) -> KeyState:
    """What an operator keeps, as it is shown."""
    return one._replace(value=value(secrets, one.value))


def session(secrets: Secrets, data: dict[str, Any], turns: list[Turn]) -> tuple[dict[str, Any], list[Turn]]:
    """What was saved in a session, and its turns, as they are shown."""
    known = learned(secrets | Secrets(frozenset[str]().union(*(one.secrets for one in turns))), data)
    for one in turns:
        known = learned(known, one.inputs, one.outputs)
    told = [replace(one, inputs=known.masked(one.inputs), outputs=known.masked(one.outputs)) for one in turns]
    return known.masked(data), told


def value(secrets: Secrets, data: Any) -> Any:
    """Any data as it is shown."""
    return learned(secrets, data).hide(data)


def learned(secrets: Secrets, *data: Any) -> Secrets:
    """What is secret, with the values that some data have, and with the fields of a call that is submitted by them."""
    found = secrets | Secrets(frozenset[str]().union(*map(secrets_in, data)))
    for one in data:
        found.learn(one)
    return found
