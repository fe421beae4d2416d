"""Starting control as a process of its own and waiting until it does its work.

dkctl does not import the service it starts: the two meet on ``deployment.json``, on HTTP, and on an exit
code.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffkeeper.domain import errors
from dkctl import client, deployments

MODULE = "diffkeeper_control.main"
# Below the directory that control locks: everything else in a new --dir is control's to make.
LOG = Path("control") / "control.log"
POLL_S = 0.05

_FAMILY_OF_EXIT = {
    2: "misconfigured",
    4: "unreachable",
    5: "not-found",
    6: "refused",
    7: "unauthorised",
    8: "timed-out",
}


def arguments(
    nodes: str | None = None,
    auto_failover: bool | None = None,
    lease_ttl_ms: int | None = None,
    addresses: Sequence[str] = (),
) -> list[str]:
    """What control is told about sites and failover; what is None is left as it is."""
    told = [] if auto_failover is None else ["--auto-failover" if auto_failover else "--no-auto-failover"]
    for flag, value in (("--nodes", nodes), ("--lease-ttl-ms", lease_ttl_ms)):
        told += [] if value is None else [flag, str(value)]
    for address in addresses:
        told += ["--site-address", address]
    return told


def start(directory: Path, sites: str | None, options: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Control in a session of its own, so that only dkctl decides what a Ctrl-C means to it."""
    log = directory / LOG
    asked = [*(["--sites", sites] if sites else []), *options]
    argv = [sys.executable, "-m", MODULE, "--dir", str(directory), *asked]
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with log.open("ab") as file:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
    except OSError as error:
        raise errors.Refused(
            f"a deployment cannot be made in {directory}: {error.strerror}",
            reason="dir-unusable",
            hint="give another --dir",
            path=error.filename,
        ) from error


def wait_until_up(
    process: subprocess.Popen[bytes], directory: Path, log_start: int, timeout_s: float
) -> dict[str, Any]:
    """The first status in which every site is alive; raises what control said when it ended instead, or
    TimedOut.
    """
    deadline = time.monotonic() + timeout_s
    seen: dict[str, Any] | None = None
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ended(process.returncode, directory, log_start)
        seen = status_of(directory, process.pid)
        if seen is not None and all(site["state"] in ("alive", "stopped") for site in seen["sites"]):
            return seen
        time.sleep(POLL_S)
    waiting = [site["site"] for site in (seen or {"sites": []})["sites"] if site["state"] != "alive"]
    raise errors.TimedOut(
        f"the deployment in {directory} was not up after {timeout_s:g} s"
        + (f"; still waiting for {', '.join(waiting)}" if waiting else ""),
        reason="start-timeout",
        hint=f"look into {directory / LOG} and {directory / 'logs'}",
    )


def status_of(directory: Path, pid: int | None = None) -> dict[str, Any] | None:
    """The status of the control that runs (as process ``pid``); None while it does not answer."""
    deployment = deployments.find(directory)
    if deployment is None or deployment.address is None:
        return None
    if pid is not None and deployment.control_pid != pid:
        return None  # what the last control left behind
    try:
        return client.Control(deployment.address, deployment.token).status()
    except errors.Transient:
        return None


def log_size(directory: Path) -> int:
    try:
        return (directory / LOG).stat().st_size
    except OSError:
        return 0


def ended(code: int, directory: Path, log_start: int) -> errors.DiffKeeperError:
    """What control said before it exited, as the error it was."""
    with (directory / LOG).open("rb") as file:
        file.seek(log_start)
        lines = file.read().decode("utf-8", "replace").splitlines()
    said = _last_error(lines)
    if said is None:
        return errors.DiffKeeperError(
            f"control ended with code {code}: {lines[-1] if lines else 'it said nothing'}",
            reason="control-ended",
            hint=f"look into {directory / LOG}",
        )
    return errors.from_dict(
        {
            "family": said.get("family") or _FAMILY_OF_EXIT.get(code, "error"),
            "reason": said.get("reason", "control-ended"),
            "message": said["event"],
            "hint": said.get("hint", f"look into {directory / LOG}"),
        }
    )


def _last_error(lines: Sequence[str]) -> dict[str, str] | None:
    """The fields of the last logfmt line of level error that belongs to a family."""
    for line in reversed(lines):
        if "level=error" not in line or "family=" not in line:
            continue
        try:
            fields = dict(part.partition("=")[::2] for part in shlex.split(line))
        except ValueError:
            continue  # not logfmt after all
        if "event" in fields:
            return fields
    return None


def is_running(pid: int, start_ticks: int | None) -> bool:
    """Whether the process that had this number then still has it (field 22 of /proc/PID/stat, proc(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    fields = stat.rpartition(")")[2].split()
    if fields[0] == "Z":
        return False
    return start_ticks is None or int(fields[19]) == start_ticks
