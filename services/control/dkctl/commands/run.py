"""``dkctl run``: a program with its state directory under care, in the foreground."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from diffkeeper.domain import errors, stop_signals
from dkctl import capturing, child, client, exits, options, output

PATH_PLACEHOLDER = "{path}"
# How long the end of the program waits for the end of a failover that stopped it.
FAILOVER_WAIT_S = 60.0


@click.command(context_settings={"allow_interspersed_args": True})
@click.argument("volume")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@capturing.options
@click.option(
    "--stop-signal",
    default=stop_signals.DEFAULT,
    show_default=True,
    metavar="SIGNAL",
    help="How a planned handover asks COMMAND to end; PostgreSQL wants INT.",
)
@click.option(
    "--io-uring",
    type=click.Choice(["refuse", "allow"]),
    default="refuse",
    show_default=True,
    help="What is synced by io_uring cannot be held; allow it for a program that does not rely on that.",
)
@click.option(
    "--hard-limit",
    is_flag=True,
    help="Stop COMMAND for an instant when it writes faster than can be captured, instead of a gap.",
)
@click.option(
    "--from",
    "begin_from",
    metavar="VOLUME@WHEN",
    help="Begin with another volume as it was then, in a new or empty --path: filled while COMMAND runs.",
)
@capturing.door_options
@options.directory
def run(
    volume: str,
    command: tuple[str, ...],
    site: str,
    path: Path | None,
    durability: str,
    policy: str,
    mode: str,
    probe: str,
    no_wait: bool,
    stop_signal: str,
    io_uring: str,
    hard_limit: bool,
    begin_from: str | None,
    listen: str | None,
    forward: int | None,
    hold_max: int,
    hold_ms: int,
    drain_ms: int,
    directory: Path,
) -> int:
    """Run COMMAND (after --) with its state directory captured as VOLUME.

    The program's fsync returns when what it covers has reached the level of --durability. Its signals and
    exit code pass through unchanged. {path} in COMMAND stands for the directory, wherever the program
    runs.

    With --from COMMAND runs at once on a moment of another volume; what it touches comes first, the rest
    behind it. What it writes from then on is captured as VOLUME.

    With --listen a front door stands before the program: clients connect there, and a planned move holds
    their requests until the program runs at the other site, so that none fails. {port} in COMMAND, and
    $DIFFKEEPER_PORT, are where the program has to listen.
    """
    check_program(command, path)
    door = capturing.door_body(listen, forward, hold_max, hold_ms, drain_ms)
    # Before the program runs, an end by signal still releases what was captured for it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    control = client.Control.of(directory)
    if begin_from is not None:
        from dkctl import beginnings

        beginnings.lay(control, directory, volume, path, begin_from)
        no_wait = True  # what is there already is in a history; it need not be safe twice before COMMAND runs
    request = capturing.body(site, path, durability, policy, mode, probe) | {
        "argv": list(command),
        "env": dict(os.environ),
        "cwd": str(Path.cwd()),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "stop_signal": stop_signals.parse(stop_signal),
        "io_uring": io_uring == "allow",
        "hard_limit": hard_limit,
        "front_door": door,
    }
    ready = control.run(volume, request)
    returncode: int | None = None
    try:
        if not no_wait:
            capturing.wait_until_ready(control, ready["volume"])
        _flush()
        returncode = child.run([*ready["wrapper"], *ready["argv"]], ready["env"])
    finally:
        release(control, ready["volume"]["volume"], site, returncode)
    return child.end_like(returncode)


def check_program(command: Sequence[str], path: Path | None) -> None:
    """Find the program before anything is captured for it; raises NotFound, or Refused when it cannot be
    executed.
    """
    program = command[0] if path is None else command[0].replace(PATH_PLACEHOLDER, str(path.absolute()))
    if PATH_PLACEHOLDER in program or shutil.which(program) is not None:
        return
    if "/" in program and os.path.exists(program):
        raise errors.Refused(
            f"{program} cannot be executed; nothing was captured",
            reason="bad-program",
            hint=f"chmod +x {program}, or name the interpreter before it",
        )
    raise errors.NotFound(
        f"there is no program {program!r}; nothing was captured",
        reason="no-program",
        hint="look at its path and at $PATH",
    )


def release(control: client.Control, volume: str, site: str, returncode: int | None) -> None:
    """Tell control that the program has ended here; whatever the answer, the program's end stands."""
    try:
        now = _settled(control, volume)
        if now.get("leader") != site:
            output.say(
                f"dkctl: {volume} was moved to {now.get('leader')} (epoch {now.get('epoch')}) while its "
                "program ran here"
            )
            return
        if now.get("leader_state") in ("stopped", "dead"):
            output.say(
                f"dkctl: site {site} is {now['leader_state']}; {volume} waits for a failover\n"
                f"  try:   dkctl failover {volume} --to SITE"
            )
            return
        control.release(volume, None if returncode is None else exits.of_returncode(returncode))
    except errors.DiffKeeperError as error:
        output.say(f"dkctl: the program has ended, and {volume} could not be released:")
        output.complain(error)


def _settled(control: client.Control, volume: str) -> dict[str, Any]:
    """The volume once no failover of it runs: a planned one stops the program before it moves the volume."""
    now = control.volume(volume)
    if now.get("operation"):
        control.operation(now["operation"], FAILOVER_WAIT_S)
        now = control.volume(volume)
    return now


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(exits.of_signal(number))


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
