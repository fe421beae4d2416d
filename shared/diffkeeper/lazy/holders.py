"""Who holds a group of events when everybody who works with it has been killed: a process that stays (``holder_process``).

The kernel lets everybody pass when the last descriptor of a group is closed, and that cannot be set otherwise. So one
descriptor is where no signal takes it away. ``adopt`` takes the group over from it, with everybody who waits in it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffkeeper.lazy.fanotify import Group

# For its start on a machine that is busy; what is waited for takes 50 ms otherwise.
PATIENCE_S = 30.0
_LOOK_EVERY_S = 0.005
_PIDFD_GETFD = 438
_ANSWER = struct.Struct("<IiQ")
# PROC_PID_INIT_INO: the number of the first process namespace.
_FIRST_NAMESPACE = "pid:[4026531836]"
_SIGKILL_BIT = 1 << 8
_KERNEL = Path("/proc/sys/kernel")
_libc = ctypes.CDLL(None, use_errno=True)


class Holder(NamedTuple):
    """A process, and the numbers of its descriptors: the group, its FUSE connection and the request it waits for."""

    pid: int
    ticks: int
    group: int
    fuse: int
    unique: int


def why_not() -> str | None:
    """Why there can be no such process here; None when there can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse"
    if os.readlink("/proc/self/ns/pid") != _FIRST_NAMESPACE:
        return "in a container its end would wait for a process that does not end"
    if _setting("hung_task_panic"):
        return "kernel.hung_task_panic is set"
    if _setting("yama/ptrace_scope") >= 3:
        return "kernel.yama.ptrace_scope is 3"
    return None


def start(folder: Path, group: Group) -> int:
    """Its process number; ``wait`` says when it holds. It is no child of the caller's, who may end before it."""
    script = Path(__file__).with_name("holder_process.py")
    argv = [sys.executable, "-I", "-S", str(script), str(folder), str(group.fd)]
    started = subprocess.run(
        ["/bin/sh", "-c", '"$@" </dev/null >>"$0" 2>&1 & echo $!', str(folder / "log"), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd="/",
        pass_fds=(group.fd,),
        start_new_session=True,
        check=True,
    )
    return int(started.stdout)


def wait(folder: Path, pid: int) -> bool:
    """Whether it holds; False when it did not come to that, which the log of the folder explains."""
    ends = time.monotonic() + PATIENCE_S
    while not (folder / f"holder-{pid}.json").exists():
        if _ticks(pid) is None or time.monotonic() > ends:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True


def keep(folder: Path, group: Group) -> None:
    """There is one that nobody tried to kill; those that somebody did may end."""
    found = list(of(folder))
    well = [one for one in found if is_well(one)]
    if not well:
        try:
            held = wait(folder, start(folder, group))
        except (OSError, subprocess.CalledProcessError):
            return  # there is no room for a process; the next look tries again
        if not held:
            return
    for one in found:
        if one not in well[:1]:
            release(folder, one)


def adopt(folder: Path) -> Group | None:
    """The group of a tree whose workers are gone; None when nobody holds it."""
    for one in of(folder):
        fd = _take(one, one.group)
        if fd is not None:
            return Group(fd)
    return None


def release_all(folder: Path) -> None:
    """Nobody has to be stopped any more."""
    for one in of(folder):
        release(folder, one)


def release(folder: Path, one: Holder) -> None:
    """It ends; at once, if it had been killed."""
    fuse = _take(one, one.fuse)
    if fuse is not None:
        try:
            os.write(fuse, _ANSWER.pack(_ANSWER.size, -errno.ENOENT, one.unique))
        except FileNotFoundError:
            pass  # somebody else answered
        finally:
            os.close(fuse)
    (folder / f"holder-{one.pid}.json").unlink(missing_ok=True)


def of(folder: Path) -> Iterator[Holder]:
    """Those that hold the group of a tree, killed or not."""
    for path in folder.glob("holder-*.json"):
        try:
            one = Holder(**json.loads(path.read_text()))
        except FileNotFoundError:
            continue
        if _ticks(one.pid) == one.ticks:
            yield one


def is_well(one: Holder) -> bool:
    """Whether nobody has tried to kill it."""
    try:
        lines = Path(f"/proc/{one.pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    pending = [line for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return not any(int(line.split()[1], 16) & _SIGKILL_BIT for line in pending)


def _take(one: Holder, number: int) -> int | None:
    """A descriptor of its; None when the process is no more."""
    try:
        process = os.pidfd_open(one.pid)
    except ProcessLookupError:
        return None
    try:
        if _ticks(one.pid) != one.ticks:
            return None
        fd = _libc.syscall(_PIDFD_GETFD, process, number, 0)
        if fd < 0:
            code = ctypes.get_errno()
            if code in (errno.ESRCH, errno.EBADF):
                return None  # it ended just now
            raise OSError(code, f"taking over from process {one.pid}: {os.strerror(code)}")
        return int(fd)
    finally:
        os.close(process)


def _ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(b")")[2].split()[19])


def _setting(name: str) -> int:
    try:
        return int((_KERNEL / name).read_text())
    except (FileNotFoundError, ValueError):
        return 0
