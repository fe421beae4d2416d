"""What a capture agent leaves in the kernel when it dies, so that its successor goes on without a gap: where it
is kept, whose it is, and how it is taken away.

The agent pins its programs, their attachment, the ring and the maps below a BPF file system: the machine's own
(``/sys/fs/bpf``) or, where that is not mounted or not writable, one mounted at ``bpf`` in the agent's directory.
While they are pinned they run at every system call of the machine, so they must not outlive their use: an agent
that stops in order, ``dkctl down`` and a site that is taken down remove them, and every agent that starts removes
those that nobody has owned for a while. Removing takes no BPF rights, only those on the files.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import time
from pathlib import Path
from typing import Self

from diffkeeper.domain import errors

SYSTEM = Path("/sys/fs/bpf")
# Below an agent's directory.
OWN_MOUNT = "bpf"
LOCK = "agent.lock"
# A symbolic link in a folder of pins, to the directory of the agent it belongs to.
OWNER = "owner"
_PREFIX = "diffkeeper-"
_OWN_FOLDER = "pins"
# What our own mounts are known by among others of their kind.
_SOURCE = b"diffkeeper"
# An owner that was killed is started again within seconds; after this long without a sign it is given up.
ORPHANED_S = 120.0
# How often an owner gives a sign of life.
SIGN_S = 10.0
_LOCK_PATIENCE_S = 2.0
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class Ownership:
    """An agent's claim on its directory, held for as long as the process lives."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    @classmethod
    def take(cls, directory: Path) -> Self:
        """Raises Misconfigured while another agent has the directory."""
        path = directory / LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while not _try_lock(descriptor):
            # A sweeper that looks whether anybody is here has it for an instant.
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise errors.Misconfigured(
                    f"another capture agent runs on {directory}",
                    reason="agent-running",
                    hint="stop it first, or give this one another directory",
                )
            time.sleep(0.05)
        os.utime(descriptor)
        return cls(descriptor, path)

    def give_sign(self) -> None:
        os.utime(self._descriptor)

    def release(self) -> None:
        os.close(self._descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def prepare(directory: Path) -> Path:
    """The folder for the pins of the agent in ``directory``, made when it is not there.

    Raises Misconfigured with the reason where nothing can be pinned.
    """
    folder = _system_folder(directory)
    if _is_bpffs(SYSTEM):
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            return folder
    own = directory / OWN_MOUNT
    own.mkdir(mode=0o700, exist_ok=True)
    if (
        not _is_bpffs(own)
        and _libc.mount(_SOURCE, os.fsencode(own), b"bpf", ctypes.c_ulong(0), b"mode=0700") != 0
    ):
        why = os.strerror(ctypes.get_errno())
        own.rmdir()
        raise errors.Misconfigured(
            f"no BPF file system at {SYSTEM}, and none could be mounted at {own}: {why}",
            reason="no-bpffs",
            hint=f"mount -t bpf bpf {SYSTEM}; without it a restart of the agent is a gap",
        )
    folder = own / _OWN_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def remove(directory: Path) -> bool:
    """Take away whatever is pinned for the agent in ``directory``, dead or alive; whether there was anything."""
    found = _remove_folder(_system_folder(directory))
    own = directory / OWN_MOUNT
    if _is_bpffs(own):
        found |= _remove_folder(own / _OWN_FOLDER)
        _unmount(own)
    with contextlib.suppress(FileNotFoundError, OSError):
        own.rmdir()
    return found


def owners() -> list[Path]:
    """The directories of all agents, dead or alive, for which something is pinned."""
    return [owner for folder in _folders() if (owner := _owner_of(folder)) is not None]


def is_owned(directory: Path) -> bool:
    """Whether the agent of a directory lives."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def remove_orphans() -> list[Path]:
    """Take away what belongs to agents that are gone for good; their directories."""
    gone = []
    for folder in _folders():
        owner = _owner_of(folder)
        if owner is None or not _is_given_up(owner):
            continue
        _remove_folder(folder)
        gone.append(owner)
    for point in _own_mounts():
        # Also one whose folder somebody removed together with the agent's directory.
        if not (point / _OWN_FOLDER).exists() and _is_given_up(point.parent):
            _unmount(point)
    return gone


def _system_folder(directory: Path) -> Path:
    # A name in a BPF file system has no dot.
    name = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:16]
    return SYSTEM / f"{_PREFIX}{name}"


def _folders() -> list[Path]:
    """Every folder of pins that can be seen from here."""
    found = sorted(SYSTEM.glob(f"{_PREFIX}*")) if _is_bpffs(SYSTEM) else []
    return [*found, *(point / _OWN_FOLDER for point in _own_mounts() if (point / _OWN_FOLDER).is_dir())]


def _own_mounts() -> list[Path]:
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        if after.split()[:2] == [b"bpf", _SOURCE]:
            # Blanks and the like stand there as octal numbers.
            path = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), before.split()[4])
            found.append(Path(os.fsdecode(path)))
    return found


def _owner_of(folder: Path) -> Path | None:
    try:
        return Path(os.readlink(folder / OWNER))
    except OSError:
        return None


def _is_given_up(owner: Path) -> bool:
    """What cannot be told, as on another agent's broken disk, is left to somebody who can."""
    try:
        sign = (owner / LOCK).stat().st_mtime
        return time.time() - sign > ORPHANED_S and not is_owned(owner)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _remove_folder(folder: Path) -> bool:
    """Without the names nothing holds the programs, unless an agent lives that has them open."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):  # somebody else tidies up too
        folder.rmdir()
    return True


def _unmount(point: Path) -> None:
    if _libc.umount2(os.fsencode(point), _MNT_DETACH) == 0:
        return
    # Not there any more, or not ours to unmount: without its pins it does nothing.
    if ctypes.get_errno() not in (errno.EINVAL, errno.EPERM, errno.ENOENT):
        raise OSError(ctypes.get_errno(), f"{point} could not be unmounted")


def _is_bpffs(path: Path) -> bool:
    """Whether a BPF file system is mounted exactly here."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            table = file.read()
    except OSError:
        return False
    wanted = os.fsencode(os.path.realpath(path)).replace(b"\\", b"\\134").replace(b" ", b"\\040")
    return any(
        line.split()[4] == wanted and line.partition(b" - ")[2].startswith(b"bpf ")
        for line in table.splitlines()
    )
