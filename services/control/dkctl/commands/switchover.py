"""``dkctl switchover``: the planned half of ``dkctl failover``, for people who look for that name."""

from __future__ import annotations

from pathlib import Path

import click

from diffkeeper.domain import errors
from dkctl import client, confirm, exits, moving, options, output


@click.command()
@click.argument("volume")
@click.option("--to", "target", required=True, metavar="SITE", help="The site that shall lead.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before traffic moves.")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the program may take to stop.",
)
@options.timeout(60.0)
@options.directory
@options.form
def switchover(
    volume: str, target: str, yes: bool, grace_s: float, timeout_s: float, directory: Path, form: str
) -> exits.Exit:
    """Hand VOLUME over to another site without loss; refuses where that cannot be promised."""
    control = client.Control.of(directory)
    before = control.volume(volume)
    leader, state = before.get("leader"), before.get("leader_state")
    if leader != target and state != "alive":
        raise errors.Refused(
            f"{volume} cannot be handed over without loss: its leader {leader} is {state}; nothing changed",
            reason="leader-not-alive",
            hint=f"dkctl failover {volume} --to {target} states what could be lost",
        )
    if leader != target:
        confirm.traffic(moving.planned_text(before, target), yes=yes)
    body = {"to": target, "grace_s": grace_s, "timeout_s": timeout_s}
    operation = moving.follow(control, control.failover(volume, body))
    return output.show(moving.ended(before, operation), form)
