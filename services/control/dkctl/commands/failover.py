"""``dkctl failover``: a volume gets another leader; planned while the old one is alive, forced when it is
dead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import errors
from dkctl import client, confirm, exits, moving, options, output

ALIVE = "alive"


@click.command()
@click.argument("volume")
@click.option("--to", "target", required=True, metavar="SITE", help="The site that shall lead.")
@click.option("--force", is_flag=True, help="Also when the leader may be alive but does not answer.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before traffic moves.")
@click.option("--accept-loss", is_flag=True, help="Do not ask before acknowledged writes may be lost.")
@click.option(
    "--durability",
    type=click.Choice(["observe", "site", "remote"]),
    help="Level from now on; a last site standing cannot meet remote.",
)
@click.option("--start/--no-start", default=True, show_default=True, help="Start the program at the target.")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the program may take to stop (planned only).",
)
@options.timeout(60.0)
@options.directory
@options.form
def failover(
    volume: str,
    target: str,
    force: bool,
    yes: bool,
    accept_loss: bool,
    durability: str | None,
    start: bool,
    grace_s: float,
    timeout_s: float,
    directory: Path,
    form: str,
) -> exits.Exit:
    """Make another site lead VOLUME.

    While the leader is alive this is a planned handover: the program is stopped at a barrier there, and
    started at the target. Otherwise what could be lost is stated before anything happens.
    """
    control = client.Control.of(directory)
    before = control.volume(volume)
    body = {
        "to": target,
        "force": force,
        "durability": durability,
        "start": start,
        "grace_s": grace_s,
        "timeout_s": timeout_s,
    }
    confirmed = _confirm(before, target, force=force, yes=yes, accept_loss=accept_loss)
    operation = _request(control, volume, body | {"accept_loss": confirmed}, accept_loss=accept_loss)
    operation = moving.follow(control, operation)
    code = output.show(moving.ended(before, operation), form)
    _warn_of_waiting(control.status(), volume)
    return code


def _warn_of_waiting(status: dict[str, Any], name: str) -> None:
    """Say it when no other site can confirm, so that nobody takes a waiting program for a broken one."""
    volume = next(one for one in status["volumes"] if one["volume"] == name)
    others = [site["site"] for site in status["sites"] if site["site"] != volume["leader"]]
    alive = [site["site"] for site in status["sites"] if site["state"] == ALIVE]
    if volume["durability"] == "remote" and not set(others) & set(alive):
        output.say(
            f"dkctl: no other site is alive to confirm, so each fsync at {volume['leader']} waits for one"
            f"\n  try:   dkctl up --site {others[0]}; or, next time, dkctl failover --durability site"
        )


def _confirm(volume: dict[str, Any], target: str, *, force: bool, yes: bool, accept_loss: bool) -> bool:
    """Ask what must be asked; whether the stated loss is accepted with it.

    A move that control is going to refuse is not asked about: its refusal says more.
    """
    name, leader, leader_state = volume["volume"], volume.get("leader"), volume.get("leader_state")
    if leader in (None, target) or (leader_state == "unreachable" and not force):
        return False
    if leader_state == ALIVE and not force:
        confirm.traffic(moving.planned_text(volume, target), yes=yes)
        return False
    statement = f"{name} moves from {leader} ({leader_state}) to {target}. Loss: {moving.loss_text(volume)}"
    if moving.loses_nothing_acknowledged(volume.get("loss_bound")):
        confirm.traffic(statement, yes=yes or accept_loss)
    else:
        confirm.loss(statement, name, accepted=accept_loss)
    return True


def _request(
    control: client.Control, volume: str, body: dict[str, Any], *, accept_loss: bool
) -> dict[str, Any]:
    try:
        return control.failover(volume, body)
    except errors.Refused as error:
        if error.reason != "needs-confirmation":
            raise
        # The leader died, or the bound grew, between the question and the request: state it as it is now.
        confirm.loss(str(error.facts.get("text") or error.message), volume, accepted=accept_loss)
        return control.failover(volume, body | {"accept_loss": True})
