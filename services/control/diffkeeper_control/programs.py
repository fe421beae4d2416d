"""How a volume's program is started at a site: its arguments, its environment, the path at which it finds its
files. Pure.

A program whose arguments say ``{path}`` is told where its files are. Any other sees them where its first
run had them: where the site keeps them elsewhere, they are shown there in a mount namespace of the
program's own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from diffkeeper.domain import receipts, stop_signals
from diffkeeper_control import registry

PATH_PLACEHOLDER = "{path}"
PORT_PLACEHOLDER = "{port}"
# Set for every program run through us; by the last one its processes are found when its site is killed.
VOLUME, SITE, PATH, GATE = "DIFFKEEPER_VOLUME", "DIFFKEEPER_SITE", "DIFFKEEPER_PATH", "DIFFKEEPER_GATE"
# Where the program may ask for receipts; the agent has it beside the gate.
SOCKET, SOCKET_NAME = "DIFFKEEPER_SOCKET", "receipts.sock"
# Set where the volume has a front door: where the program listens at this site.
PORT = "DIFFKEEPER_PORT"


@dataclass(frozen=True, slots=True)
class Start:
    argv: list[str]
    env: dict[str, str]
    # Where the program sees the directory; None when it is there anyway.
    bind: str | None


def at(volume: registry.Volume, site: str, gate: str, command: registry.Command) -> Start:
    """``gate`` is empty for a program that nobody captures: it has nobody to ask for receipts either."""
    path = volume.paths[site]
    bind = _bind(volume, path, command)
    seen = bind or path
    argv = [argument.replace(PATH_PLACEHOLDER, seen) for argument in command.argv]
    env = {**command.env, VOLUME: volume.name, SITE: site, PATH: seen}
    if gate:
        env |= {GATE: gate, SOCKET: str(PurePosixPath(gate).with_name(SOCKET_NAME))}
    if volume.door is not None:
        port = str(volume.door.ports[site])
        argv = [argument.replace(PORT_PLACEHOLDER, port) for argument in argv]
        env[PORT] = port
    return Start(argv, env, bind)


def wrapper(volume: registry.Volume, site: str, gate: str, command: registry.Command) -> list[str]:
    """What stands before the program's own arguments when the caller starts it; ends with ``--``."""
    path = volume.paths[site]
    words = [sys.executable, "-m", "diffkeeper_capture.run_wrapper", "--agent-socket", gate]
    words += ["--volume", volume.name, "--root", path]
    if command.hard_limit:
        words.append("--hard-limit")
    elif volume.level is receipts.Level.OBSERVE:
        words += ["--no-gate"]  # nothing ever waits, so nothing needs to be stopped
    if command.stop_signal != stop_signals.DEFAULT:
        words += ["--stop-signal", command.stop_signal]
    if command.io_uring:
        words += ["--io-uring", "allow"]
    if _bind(volume, path, command) is not None:
        words += ["--bind", f"{path}={volume.bind}"]
        if command.cwd is not None:
            words += ["--cwd", command.cwd]  # entered again, for it may lie below what is shown
    return [*words, "--"]


def _bind(volume: registry.Volume, path: str, command: registry.Command) -> str | None:
    """Where the program must find its files although they are not there; None when there is no such need.

    A command that has its path filled in needs no mount, and so no rights to make one.
    """
    told = any(PATH_PLACEHOLDER in argument for argument in command.argv)
    return None if told or volume.bind == path else volume.bind


def start_body(volume: registry.Volume, site: str, gate: str, command: registry.Command) -> dict[str, Any]:
    """The body of ``POST start`` at the site's agent."""
    start = at(volume, site, gate, command)
    return {
        "argv": start.argv,
        "env": start.env,
        "cwd": command.cwd,
        "uid": command.uid,
        "gid": command.gid,
        "bind": start.bind,
        "stop_signal": command.stop_signal,
        "io_uring": command.io_uring,
        "hard_limit": command.hard_limit,
    }
