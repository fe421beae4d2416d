"""Leaving nothing behind: no process, no mount, no file, however the demo ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SETTLE_S = 5.0
POLL_S = 0.05


def processes_of(place: Path) -> dict[int, str]:
    """Processes (pid, command line) whose command line names a path below ``place``, this one left out."""
    needle, found = os.fsencode(place), {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if needle in words:
            found[int(entry.name)] = words.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return found


def mounts_of(place: Path) -> list[str]:
    """Mount points of this namespace below ``place``."""
    points = [line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [point for point in points if point == str(place) or point.startswith(f"{place}/")]


def stop(deployment: Path) -> None:
    """Ask for an ordered stop; what does not follow is ``sweep``'s."""
    if (deployment / "deployment.json").exists():
        subprocess.run(
            [sys.executable, "-m", "dkctl.main", "down", "--dir", str(deployment), "--timeout", "20"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
            # A second Ctrl-C must not end what puts things away.
            start_new_session=True,
        )


def sweep(place: Path) -> list[str]:
    """SIGKILL whatever still runs for ``place``, control first so that it starts nothing anew; what had
    to be killed.
    """
    killed: dict[int, str] = {}
    deadline = time.monotonic() + SETTLE_S
    quiet = 0
    # Two quiet looks in a row: a process between fork and exec shows its parent's command line, or none.
    while quiet < 2 and time.monotonic() < deadline:
        left = processes_of(place)
        quiet = 0 if left else quiet + 1
        for pid in sorted(left, key=lambda pid: "diffkeeper_control" not in left[pid]):
            killed[pid] = left[pid]
            _kill(pid)
        time.sleep(POLL_S)
    return list(killed.values())


def remove(place: Path) -> None:
    """Delete the demo's directory, unless something is mounted below it: that must never be emptied
    through us.
    """
    if not mounts_of(place):
        shutil.rmtree(place, ignore_errors=True)


def noted_pids(deployment: Path) -> list[int]:
    """The processes that the deployment's note names."""
    try:
        note = json.loads((deployment / "deployment.json").read_text())
    except FileNotFoundError:
        return []
    pids = [process["pid"] for site in note["sites"].values() for process in site["processes"].values()]
    return [*([note["control"]["pid"]] if note.get("control") else []), *pids]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended between the look and the blow
