"""What is looked at without the values of secret fields, whatever names those have by now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dspex.bus.serving.keys.secret_fields import SECRET, Secrets

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.letters import DeadLetter
    from dspex.engine.client.runs.steps import Step
    from dspex.engine.client.status.approvals import Approval
    from dspex.engine.client.status.state import KeyState


async def secrets_of(c: Client) -> Secrets:
    """What is secret in the topologies of an application."""
    applied = await c.manifests()
    return Secrets(frozenset[str]().union(*(one.secrets for one in applied.values())))


def step(secrets: Secrets, one: Step) -> Step:
    """An attempt at a call, as it is shown."""
    if not secrets:
        return one
    names = ("inputs", "outputs", "error", "exchanges")
    return replace(one, **{name: value(secrets, getattr(one, name)) for name in names})


def letter(secrets: Secrets, d: DeadLetter) -> DeadLetter:
    """A dead letter as it is shown."""
    if not secrets:
        return d
    event = replace(d.event, data=value(secrets, d.event.data))
    text = secrets.text
    return replace(d, event=event, message=text(d.message), fix=text(d.fix), traceback=text(d.traceback))


def approval(secrets: Secrets, one: Approval) -> Approval:
    """What waits for a decision, as it is shown."""
    if not secrets:
        return one
    event = replace(one.event, data=value(secrets, one.event.data))
    return replace(one, event=event, shown=value(secrets, one.shown))


def state(secrets: Secrets, one: KeyState) -> KeyState:
    """What an operator keeps, as it is shown."""
    return one._replace(value=value(secrets, one.value)) if secrets else one


def value(secrets: Secrets, data: Any) -> Any:
    """Any data as it is shown. Of bytes nobody can tell what is in them."""
    if not secrets:
        return data
    secrets.learn(data)
    return SECRET if isinstance(data, bytes) else secrets.masked(data)
