"""What the kernel side says, record by record; the contract between ``bpf/capture.bpf.c`` and the observer.

A record is a fixed little-endian head, then the payload where its kind has one: all that is left of the
record in the ring. For a WRITE that is ``length`` bytes, and none when UNREADABLE. Records stand in the ring
in the order in which their system calls returned. The C twin of this layout is ``struct dk_record``; a test
compares both.

What is uncertain says so. A record with OVERLAPPED changed a file while another call did: its own range is as
it says, but which of the two came first is not known, so what they have in common is to be read again (all of
the file for SIZE, OPEN and a truncation by path). Where even the range is not certain, such as for appends
that interleave, the record is a REREAD of a range that surely covers it.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple


class Kind(enum.IntEnum):
    # Payload: the bytes; offset: where they went; aux: size of the file afterwards; extra: system call
    # number.
    WRITE = 1
    # The range (offset, length) changed in a way whose bytes were not seen; aux: size afterwards; extra:
    # system call number. With NO_VOLUME: this inode changed under a name that is in no volume (another hard
    # link, a descriptor that was closed meanwhile); whoever knows it as his has to read it again.
    REREAD = 2
    # A file was created (CREATED) or emptied (TRUNCATED) by open; payload: its name; inode2: its directory;
    # aux: mode.
    OPEN = 3
    # ftruncate; aux: the new size.
    SIZE = 4
    # A call that names paths; offset: PathOp; payload: path NUL [path2 NUL], as given; inode, inode2: the
    # directories they are relative to (the caller's root for absolute ones); uid, gid: the caller's, where
    # the operation has none of its own. Without payload when UNREADABLE. Calls of all processes come, except
    # those whose names are plain ones in directories outside every volume.
    PATH = 5
    # fchmod, fchown, futimens; aux, uid, gid: mode and owner afterwards; offset, length: times of access and
    # change afterwards, in ns; extra: system call number.
    ATTR = 6
    # fsetxattr, fremovexattr; payload: the attribute's name. Like ATTR, DIRTIED and MAPPED with NO_VOLUME when
    # the file may be known by another name than the one it was opened by.
    XATTR = 7
    # A shared mapping of (offset, length) was made, or made writable; inode2: Mapping.
    MAPPED = 8
    # Something changed, or may from now on, in a way this probe does not follow; extra: system call number
    # (io_uring_setup, io_setup), with COMPAT_CALL when a 32-bit program was started (NO_VOLUME) or opened a
    # file of a volume, or URING_CALL and an operation of io_uring that changes names (NO_VOLUME) or one file
    # (inode) and is not told when it is done.
    UNSEEN = 9
    # fsync, fdatasync or sync_file_range returned 0; extra: system call number.
    SYNC = 10
    # Pages of a file turned dirty by no call that is told: stores through a mapping, or the kernel itself for
    # an overlay or a loop device; offset: the first, length: how many (pages, not bytes); aux: size of the
    # file. A page may change any number of times from here until it is written back. May have NO_VOLUME.
    DIRTIED = 11
    # fallocate of (offset, length); extra: its mode; aux: size afterwards.
    ALLOCATED = 12
    # A process behind a gate was stopped after a write that is durable by flag; tgid: which one.
    HELD = 13


class Flag(enum.IntFlag):
    UNREADABLE = 1  # the payload could not be copied: re-read the range (a WRITE without payload)
    OVERLAPPED = 2  # another change of the same inode returned between this one's start and end
    APPEND = 4  # O_APPEND or RWF_APPEND
    CREATED = 8
    TRUNCATED = 16
    UNLINKED = 32  # the file had no name left
    SYNCHRONOUS = 64  # durable by flag: O_SYNC, O_DSYNC, RWF_SYNC, RWF_DSYNC
    PARTIAL = 128  # one of several records of one system call; the last of them does not carry it
    PATH_CUT = 256  # a path was longer than the record holds
    OVERLAPPED_NAMES = 512  # another naming call returned between this one's start and end
    DIRECT = 1024  # O_DIRECT
    # A PATH record knows a file: of MKDIR and MKNOD inode2 is the new one, of SYMLINK inode is, and aux, uid,
    # gid are its mode and owner; of LINK inode is the file that gets a name by its descriptor.
    FOUND = 2048


class Mapping(enum.IntFlag):
    """Of a MAPPED record; 0: nothing more will be told of stores to this file."""

    FOLLOWED = 1  # every page that turns dirty from now on is told
    DIRTY = 2  # some page was dirty before: stores to it are not told


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
    UTIMES = 10  # extra: flags; aux, inode2: times of access and change in ns, or TIME_NOW, or TIME_KEPT
    TRUNCATE = 11  # aux: the new size
    SETXATTR = 12  # path2: the attribute's name; extra: 1 for the l… variants
    REMOVEXATTR = 13


# The slot of a volume in a record whose volume the kernel cannot tell (PATH records above all).
NO_VOLUME = 0xFFFFFFFF
# Set in the system call number of an UNSEEN record: the number is one of the 32-bit table.
COMPAT_CALL = 0x40000000
# The same for an operation of io_uring.
URING_CALL = 0x20000000
# Times in a UTIMES record that the call did not give.
TIME_NOW = (1 << 64) - 1
TIME_KEPT = TIME_NOW - 1
# A WRITE carries at most this much; a larger one is several records. One call of more than COPY_MAX_BYTES is
# UNREADABLE.
PAYLOAD_MAX_BYTES = 256 * 1024
COPY_MAX_BYTES = 16 * 1024 * 1024

# kind, flags, volume, end_ns, start_ns, tgid, tid, inode, generation, device, offset, length, aux,
# inode2, generation2, device2, uid, gid, extra, mount_ns
HEAD = struct.Struct("<HHIQQIIQIIQQQQIIIIII")
HEAD_BYTES = HEAD.size
assert HEAD_BYTES == 104


class Record(NamedTuple):
    """The head of a record, unpacked. Devices are the kernel's ``dev_t`` (major << 20 | minor).

    Times are CLOCK_MONOTONIC ns; ``start_ns`` is 0 when the probe came in the middle of the call.
    """

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
