"""``python -m diffkeeper.lazy.keeper FOLDER GROUP LOCK WORKER``: holds a group of events beside the worker that answers
them, and starts another worker when that has died. It does nothing else, so nothing else can end it; when it is killed,
the worker starts another keeper.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from diffkeeper.lazy.fanotify import Group

ENDED = "ended"
# Between two starts: a worker that cannot work is not started for ever without a breath.
_PAUSE_S = 1.0
_WORKER, _KEEPER = "diffkeeper.lazy.worker", "diffkeeper.lazy.keeper"


def main() -> None:
    folder, group, lock, worker = arguments()
    started = 0.0
    while True:
        _await_end(worker)
        if (folder / ENDED).exists() or not folder.exists():
            return
        started = _breathe(started)
        worker = _start(folder, group, lock, _WORKER, os.getpid())


def arguments() -> tuple[Path, Group, int, int]:
    """The folder, the group, the folder's lock, and the process that is watched. The descriptors stay here."""
    folder, group, lock, watched = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    os.set_inheritable(group, False)
    os.set_inheritable(lock, False)
    return folder, Group(group), lock, watched


def start_worker(folder: Path, group: Group, lock: int) -> None:
    """It starts a keeper for itself. The caller may let go of both when this returns."""
    _start(folder, group, lock, _WORKER, 0)


def watch(folder: Path, group: Group, lock: int, keeper: int) -> None:
    """For the worker's thread: there is always a keeper."""
    started = 0.0
    while True:
        if keeper:
            _await_end(keeper)
        started = _breathe(started)
        keeper = _start(folder, group, lock, _KEEPER, os.getpid())


def _breathe(started: float) -> float:
    """At once the first time, for until then nobody else holds the group."""
    time.sleep(max(0.0, started + _PAUSE_S - time.monotonic()))
    return time.monotonic()


def _start(folder: Path, group: Group, lock: int, module: str, watched: int) -> int:
    """Its process number. It is no child of the caller's, who may end before it or live much longer."""
    argv = [sys.executable, "-m", module, str(folder), str(group.fd), str(lock), str(watched)]
    while True:
        started = subprocess.run(
            ["/bin/sh", "-c", '"$@" </dev/null >>"$0" 2>&1 & echo $!', str(folder / "log"), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd="/",
            pass_fds=(group.fd, lock),
            start_new_session=True,
            check=False,
        )
        if started.returncode == 0:
            return int(started.stdout)
        time.sleep(_PAUSE_S)  # it was killed, or there was no room for a process


def _await_end(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll()
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
