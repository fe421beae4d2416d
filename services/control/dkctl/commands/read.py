"""``dkctl read``: a program on what a follower has, at a position that is told."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import click

from diffkeeper.domain import errors
from dkctl import child, client, options, output

PATH_PLACEHOLDER = "{path}"
# Makes the directory read-only where only the command sees it, then becomes the command.
_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


@click.command(context_settings={"allow_interspersed_args": True})
@click.argument("volume")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--site", required=True, metavar="SITE", help="A site that follows.")
@click.option(
    "--live",
    is_flag=True,
    help="The replica itself, read-only, which moves on under the command; wants root. Otherwise a clone.",
)
@options.directory
def read(volume: str, command: tuple[str, ...], site: str, live: bool, directory: Path) -> int:
    """Run COMMAND (after --) on what SITE has of VOLUME, while the program goes on elsewhere.

    It gets a clone at one position, which is its own to write to and is thrown away at its end. {path} in
    COMMAND and $DIFFKEEPER_PATH are where it is; $DIFFKEEPER_POSITION is where in the log it stands, which is
    also said on stderr.
    """
    control = client.Control.of(directory)
    view = _live(control, volume, site) if live else None
    clone = control.make_clone(volume, site, os.getpid()) if view is None else None
    # From here on an end by signal still takes the clone away.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        found = view or clone
        assert found is not None, "one of the two was asked for"
        path, position = str(found["path"]), str(found["position"])
        beyond = " or beyond" if live else ""
        output.say(f"dkctl: {volume} at {site}, position {position}{beyond}")
        argv = [word.replace(PATH_PLACEHOLDER, path) for word in command]
        if live:
            argv = [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "--",
                "sh",
                "-c",
                _READ_ONLY,
                "sh",
                path,
                *argv,
            ]
        env = {
            **os.environ,
            "DIFFKEEPER_VOLUME": volume,
            "DIFFKEEPER_SITE": site,
            "DIFFKEEPER_PATH": path,
            "DIFFKEEPER_POSITION": position,
        }
        returncode = child.run(argv, env)
    finally:
        if clone is not None:
            _remove(control, site, str(clone["id"]))
    return child.end_like(returncode)


def _live(control: client.Control, volume: str, site: str) -> dict[str, Any]:
    """Where a follower's directory is, and what has been applied to it."""
    if os.geteuid() != 0:
        raise errors.Refused(
            "a read-only view of the replica itself is a mount, which only root may make",
            reason="not-root",
            hint="leave --live out for a clone, or run this as root",
        )
    known = control.volume(volume)
    found: dict[str, Any] | None = next((one for one in known["sites"] if one["site"] == site), None)
    if found is None:
        raise errors.NotFound(f"there is no site {site!r}", reason="unknown-site", hint="dkctl status")
    if found["role"] != "follow" or not found["base_complete"]:
        raise errors.Refused(
            f"site {site} has no complete replica of {volume} that follows (its role: {found['role']})",
            reason="not-following",
            hint=f"dkctl status {volume} shows who follows",
        )
    return {"path": found["path"], "position": found["applied"]}


def _remove(control: client.Control, site: str, clone: str) -> None:
    """Whatever the answer, the end of the command stands; control sweeps up what is left."""
    try:
        control.remove_clone(site, clone)
    except errors.DiffKeeperError as error:
        output.say("dkctl: the clone could not be taken away yet:")
        output.complain(error)
