"""Where a lazily filled tree stands while it is filled: in a hidden folder beside its target, and mounted onto that.

So after a power cut the target is an empty directory in which nothing can be made, and no program takes what is not
filled for its data. Once all is filled and nobody is in it, the tree takes the target's place in one rename, which takes
the mount away with it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct
from pathlib import Path

from diffkeeper.domain import errors
from diffkeeper.lazy import holders

_BIND, _REC, _REMOUNT, _RDONLY, _PRIVATE = 0x1000, 0x4000, 0x20, 0x1, 1 << 18
_DETACH = 2
_NEW_NAMESPACE = 0x20000
_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10
# In the folder: the target was missing before.
_MADE = "target-made"
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def folder_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.dkctl-lazy")


def show(tree: Path, target: Path, *, read_only: bool) -> None:
    """Mount the tree onto the target, which is closed beneath. Raises OSError."""
    if is_shown(tree, target):
        return
    if not target.exists():
        (tree.parent / _MADE).touch()
        target.mkdir()
    _set_immutable(target, True)
    _mount(tree, target, _BIND)
    _mount(None, target, _PRIVATE)
    if read_only:
        _mount(None, target, _BIND | _REMOUNT | _RDONLY)


def is_shown(tree: Path, target: Path) -> bool:
    try:
        return os.path.samestat(os.stat(tree), os.stat(target))
    except FileNotFoundError:
        return False


def is_left_alone(target: Path) -> bool:
    """Whether no process stands in the mount. What it has open goes on by itself when the mount goes; a working
    directory would have no name any more.
    """
    inside = f"{target}/"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for word in ("cwd", "root"):
            try:
                stands = os.readlink(f"/proc/{pid}/{word}")
            except OSError:
                continue  # it has ended
            if f"{stands}/".startswith(inside):
                return False
    return True


def hide(target: Path) -> bool:
    """Take the mount away; False when it is in use."""
    # What is no mount is away already.
    return _libc.umount2(os.fsencode(target), 0) == 0 or ctypes.get_errno() in (errno.EINVAL, errno.ENOENT)


def discard(folder: Path, target: Path) -> None:
    """Nothing of it stays, the empty target included where it was made for it."""
    _set_immutable(target, False)
    if (folder / _MADE).exists() and target.is_dir():
        target.rmdir()
    remove(folder)


def remove(folder: Path) -> None:
    """The hidden folder goes, with whoever holds its group."""
    holders.release_all(folder)
    shutil.rmtree(folder)


def put_aside(folder: Path, target: Path, aside: Path) -> None:
    """As ``discard``, but what the tree holds stays under another name. The mount is away."""
    _set_immutable(target, False)
    os.rename(folder / "tree", aside)
    target.rmdir()
    remove(folder)


def settle(tree: Path, target: Path) -> None:
    """The tree takes the place of the target, for everybody at once. What is open stays open."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            # A target that is a mount point is not renamed over, but where the mount is elsewhere it is.
            if _libc.unshare(_NEW_NAMESPACE) == 0:
                _mount(None, Path("/"), _REC | _PRIVATE)
                while _libc.umount2(os.fsencode(target), _DETACH) == 0:
                    pass
                _set_immutable(target, False)
                os.rename(tree, target)
                status = 0
        finally:
            os._exit(status)
    _, code = os.waitpid(pid, 0)
    if code != 0:
        raise errors.DiffKeeperError(
            f"{tree} could not take the place of {target}; it is whole, and mounted there", reason="not-moved"
        )


def _mount(source: Path | None, target: Path, flags: int) -> None:
    named = None if source is None else os.fsencode(source)
    if _libc.mount(named, os.fsencode(target), None, flags, None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mounting onto {target}: {os.strerror(code)}")


def _set_immutable(path: Path, on: bool) -> None:
    """Where the file system can; elsewhere the directory is only empty."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, _GET_FLAGS, struct.pack("l", 0)))
        flags = flags | _IMMUTABLE if on else flags & ~_IMMUTABLE
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("l", flags))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM):
            raise
    finally:
        os.close(fd)
