"""Verbs about running topologies and about what runs: `run`, `publish`, `watch`, `call`, `status`, `dlq`."""

from __future__ import annotations

import typer

from dspex.engine import cli_events, cli_letters, cli_publish, cli_run, cli_status


def register(app: typer.Typer) -> None:
    """Add this room's verbs."""
    app.command("run")(cli_run.run)
    app.command("publish", cls=cli_publish.WithWait)(cli_publish.publish)
    app.command("watch")(cli_events.watch)
    app.command("call")(cli_events.call)
    app.command("status")(cli_status.status)
    dlq = typer.Typer(help="Dead letters: events that could not be processed.", no_args_is_help=True)
    dlq.command("ls")(cli_letters.ls)
    dlq.command("show")(cli_letters.show)
    dlq.command("redrive")(cli_letters.redrive)
    dlq.command("drop")(cli_letters.drop)
    app.add_typer(dlq, name="dlq")
