"""What the kernel side says, record by record; the contract between ``bpf/capture.bpf.c`` and the observer.

A record is a fixed little-endian head, then ``length`` payload bytes where its kind has a payload. Records stand in the ring in
the order in which their system calls returned. The C twin of this layout is ``struct dk_record``; a test compares both.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple


class Kind(enum.IntEnum):
    WRITE = 1  # payload: the bytes; offset: where they went; aux: size of the file afterwards
    REREAD = (
        2  # the range (offset, length) changed in a way whose bytes were not seen; extra: system call number
    )
    OPEN = 3  # a file was created (CREATED) or emptied (TRUNCATED) by open; payload: its name; inode2: its directory; aux: mode
    SIZE = 4  # ftruncate; aux: the new size
    PATH = 5  # a call that names paths; offset: PathOp; payload: path NUL [path2 NUL]; inode, inode2: their base directories
    ATTR = 6  # fchmod, fchown, futimens: aux: mode, uid, gid afterwards
    XATTR = 7  # fsetxattr, fremovexattr; payload: the attribute's name
    MAPPED = 8  # a shared writable mapping was made of (offset, length)
    UNSEEN = 9  # a way of writing that this probe does not follow was opened (io_uring, AIO); extra: system call number
    SYNC = 10  # fsync or fdatasync returned 0; extra: system call number


class Flag(enum.IntFlag):
    UNREADABLE = 1  # the payload could not be copied: re-read the range (a WRITE without payload)
    OVERLAPPED = 2  # another write to the same inode returned between this one's start and end
    APPEND = 4  # O_APPEND
    CREATED = 8
    TRUNCATED = 16
    UNLINKED = 32  # the file had no name left
    SYNCHRONOUS = 64  # durable by flag: O_SYNC, O_DSYNC, RWF_SYNC, RWF_DSYNC
    PARTIAL = 128  # one of several records of one system call; the last of them does not carry it
    PATH_CUT = 256  # a path was longer than the record holds
    OVERLAPPED_NAMES = 512  # another naming call in a volume returned between this one's start and end
    DIRECT = 1024  # O_DIRECT


class PathOp(enum.IntEnum):
    UNLINK = 1
    RMDIR = 2
    RENAME = 3  # extra: renameat2 flags
    MKDIR = 4  # aux: mode as asked
    LINK = 5  # extra: linkat flags
    SYMLINK = 6  # path: the target as given; path2: the new name
    MKNOD = 7  # aux: mode as asked
    CHMOD = 8  # aux: mode; extra: flags
    CHOWN = 9  # uid, gid as asked (0xFFFFFFFF: unchanged); extra: AT_SYMLINK_NOFOLLOW or 0
    UTIMES = 10  # extra: flags
    TRUNCATE = 11  # aux: the new size
    SETXATTR = 12  # path2: the attribute's name; extra: 1 for the l… variants
    REMOVEXATTR = 13


# The slot of a volume in a record whose volume the kernel cannot tell (PATH records).
NO_VOLUME = 0xFFFFFFFF

# kind, flags, volume, end_ns, start_ns, tgid, tid, inode, generation, device, offset, length, aux,
# inode2, generation2, device2, uid, gid, extra, mount_ns
HEAD = struct.Struct("<HHIQQIIQIIQQQQIIIIII")
HEAD_BYTES = HEAD.size
assert HEAD_BYTES == 104


class Record(NamedTuple):
    """The head of a record, unpacked. Times are CLOCK_MONOTONIC ns; devices are the kernel's ``dev_t`` (major << 20 | minor)."""

    kind: int
    flags: int
    volume: int
    end_ns: int
    start_ns: int
    tgid: int
    tid: int
    inode: int
    generation: int
    device: int
    offset: int
    length: int
    aux: int
    inode2: int
    generation2: int
    device2: int
    uid: int
    gid: int
    extra: int
    mount_ns: int  # inode number of the caller's mount namespace
