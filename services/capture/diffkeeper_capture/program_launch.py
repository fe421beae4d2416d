"""The child's side of the run wrapper: between fork and exec.

Everything that can fail is done here, one named step after the other, and a failure travels to the parent by
a pipe that a successful exec closes; so the parent can say in one sentence what went wrong. Only standard
library here.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import stat
from dataclasses import dataclass
from typing import NoReturn

from diffkeeper.domain import errors
from diffkeeper_capture import seccomp

_PR_SET_PDEATHSIG = 1
_PR_GET_NO_NEW_PRIVS = 39
_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000

# As shells and env(1) say it; 125 is a failure of our own before the program was tried.
EXIT_OWN_FAILURE = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class Launch:
    """How the program is to be started."""

    argv: tuple[str, ...]
    environment: dict[bytes, bytes]
    cwd: str | None = None
    uid: int | None = None
    gid: int | None = None
    bind: tuple[str, str] | None = None  # (directory, where the program sees it)
    gated: bool = True
    io_uring: bool = False


def environment_as_given() -> dict[bytes, bytes]:
    """What this process was started with; in the C locale Python itself adds LC_CTYPE to ``os.environ``."""
    with open("/proc/self/environ", "rb") as file:
        entries = file.read().split(b"\0")
    return dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no program, as the parent prints it."""

    message: str
    hint: str
    exit_code: int


def become_program(
    launch: Launch,
    *,
    parent: int,
    parent_end: socket.socket,
    failures: int,
    signal_mask: set[signal.Signals],
) -> NoReturn:
    """Never returns: the process becomes the program, or reports why not and exits.

    ``parent_end`` carries the listener out and the word to go on in; ``failures`` is the close-on-exec pipe.
    """
    step = _Step()
    try:
        _prepare(launch, parent, parent_end, signal_mask, step)
        step.now = "exec"
        if launch.gated:
            _refuse_set_id(launch)
        os.execvpe(launch.argv[0], launch.argv, launch.environment)
    except errors.DiffKeeperError as error:
        failure = Failure(error.message, error.hint, EXIT_OWN_FAILURE)
    except OSError as error:
        failure = _explain(launch, step.now, error)
    os.write(failures, json.dumps([failure.message, failure.hint, failure.exit_code]).encode())
    os._exit(failure.exit_code)


class _Step:
    now = ""


def _prepare(
    launch: Launch, parent: int, parent_end: socket.socket, signal_mask: set[signal.Signals], step: _Step
) -> None:
    if launch.bind is not None:
        step.now = f"show {launch.bind[0]} at {launch.bind[1]}"
        _bind(*launch.bind)
    if launch.gated:
        step.now = "install the gate"
        # Before the identity changes: with CAP_SYS_ADMIN the filter needs no no_new_privs.
        listener = seccomp.install(io_uring=launch.io_uring)
        socket.send_fds(parent_end, [b"listener"], [listener])
        os.close(listener)
        # A gated call that does nothing: from its number the wrapper knows those of the calls to come.
        seccomp.libc.syncfs(-1)
    # Who is already who they must be needs no rights, and keeps their other groups.
    changes_user = launch.uid is not None and launch.uid != os.getuid()
    if launch.gid is not None and (changes_user or launch.gid != os.getgid()):
        step.now = f"become group {launch.gid}"
        os.setgroups([launch.gid])
        os.setresgid(launch.gid, launch.gid, launch.gid)
    if changes_user:
        assert launch.uid is not None, "a change is to somebody"
        step.now = f"become user {launch.uid}"
        os.setresuid(launch.uid, launch.uid, launch.uid)
    # After the identity changed, because a change clears it. Without the wrapper nobody would let calls go
    # on, and gated calls would fail: the program must not outlive it.
    step.now = "tie the program to its wrapper"
    if seccomp.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")
    if os.getppid() != parent:
        os._exit(EXIT_OWN_FAILURE)  # the wrapper died before the tie was made
    if launch.cwd is not None:
        step.now = f"enter {launch.cwd}"
        os.chdir(launch.cwd)
    step.now = "wait for the word to go on"
    if parent_end.recv(1) != b"g":
        os._exit(EXIT_OWN_FAILURE)  # the parent has said why
    # What Python itself ignores the program must not inherit; everything else is as it was.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)


def _refuse_set_id(launch: Launch) -> None:
    """Without CAP_SYS_ADMIN the gate takes from all below it the way to more rights by exec, silently: a program that
    lives by them is refused instead of failing later in its own words.
    """
    if seccomp.libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        return
    path = os.fsdecode(launch.environment.get(b"PATH", os.fsencode(os.defpath)))
    program = shutil.which(launch.argv[0], path=path)
    if program is None:
        return  # exec says why
    status = os.stat(program)
    gains_user = status.st_mode & stat.S_ISUID and status.st_uid != os.getuid()
    gains_group = status.st_mode & stat.S_ISGID and status.st_gid not in (os.getgid(), *os.getgroups())
    try:
        gains_rights = bool(os.getxattr(program, "security.capability"))
    except OSError:
        gains_rights = False
    if gains_user or gains_group or gains_rights:
        raise errors.Refused(
            f"{program} gets its rights from its file (set-id or capabilities), and behind the gate it would not",
            reason="set-id-program",
            hint="run it as root (--uid, --gid), or with durability observe, which needs no gate",
        )


def _bind(directory: str, target: str) -> None:
    """Show ``directory`` at ``target`` in a mount namespace of the program's own; nothing of it is seen
    outside. What is unmounted outside goes here too, where mounts are shared: a copy would keep a disk busy.
    """
    if os.path.realpath(directory) == os.path.realpath(target):
        return
    libc = seccomp.libc
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare failed")
    if libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None) != 0:
        raise OSError(ctypes.get_errno(), "mount failed")
    if libc.mount(os.fsencode(directory), os.fsencode(target), None, ctypes.c_ulong(_MS_BIND), None) != 0:
        raise OSError(ctypes.get_errno(), "mount failed")


def _explain(launch: Launch, step: str, error: OSError) -> Failure:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if step != "exec":
        return Failure(f"cannot {step}: {reason}", _hint(step, error), EXIT_OWN_FAILURE)
    name = launch.argv[0]
    if error.errno == errno.ENOENT and "/" in name and os.path.exists(name):
        return Failure(
            f"cannot execute {name}: its interpreter does not exist", "look at its first line", 126
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        where = "there is no such file" if "/" in name else "it is not in PATH"
        return Failure(f"cannot execute {name}: {where}", "check the command after --", EXIT_NOT_FOUND)
    hint = "it is a directory" if os.path.isdir(name) else "check its permissions and its format"
    return Failure(f"cannot execute {shutil.which(name) or name}: {reason}", hint, EXIT_NOT_EXECUTABLE)


def _hint(step: str, error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "this needs root, or rights on the directory"
    if step.startswith("show") and error.errno == errno.ENOENT:
        return "the directory where the program sees its volume must exist"
    return ""
