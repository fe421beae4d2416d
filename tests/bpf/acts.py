"""What the child processes do: every way of writing. Run as ``python acts.py NAME DIRECTORY [ARGUMENT...]``.

Calls that Python has no function for go through ``syscall(2)`` with the numbers of the machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import platform
import random
import struct
import sys
import threading
import time
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
LIBC.mmap.restype = ctypes.c_void_p
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
X86_NUMBERS = {
    "open": 2,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "creat": 85,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "chmod": 90,
    "chown": 92,
    "lchown": 94,
    "utime": 132,
    "mknod": 133,
    "utimes": 235,
    "futimesat": 261,
}
ANY_NUMBERS = {
    "io_uring_setup": 425,
    "openat2": 437,
    "fchmodat2": 452,
    "setxattrat": 463,
    "removexattrat": 466,
}
IO_SETUP = {"x86_64": 206, "aarch64": 0}


def syscall(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(LIBC.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"syscall {number}")
    return result


def old(name: str, *arguments: object) -> int:
    """A call that only x86-64 still has."""
    assert platform.machine() == "x86_64"
    return syscall(X86_NUMBERS[name], *arguments)


def made(path: str, flags: int = 0, mode: int = 0o644) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, mode)


# --------------------------------------------------------------------------------------------------------
# content


def plain_writes(root: str) -> None:
    fd = made(f"{root}/a")
    os.write(fd, b"hello")
    os.pwrite(fd, b"far", 100)
    os.write(fd, b" world")
    os.writev(fd, [b"one", b"", b"two"])
    os.pwritev(fd, [b"x", b"yz"], 50)
    os.pwritev(fd, [b"durable"], 200, os.RWF_DSYNC)
    # pwritev2 with offset -1 uses, and moves, the position.
    iov = (ctypes.c_char_p * 2)(b"here", ctypes.cast(4, ctypes.c_char_p))
    LIBC.pwritev2(fd, iov, 1, ctypes.c_long(-1), 0)
    os.write(fd, b"!")
    os.write(fd, b"")


def failed_writes(root: str) -> None:
    fd = made(f"{root}/a")
    reader = os.open(f"{root}/a", os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.write(reader, b"no")
    with contextlib.suppress(OSError):
        os.pwrite(fd, b"no", -1)
    os.write(fd, b"yes")


def appends(root: str) -> None:
    fd = made(f"{root}/log", os.O_APPEND)
    os.write(fd, b"first ")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"second ")
    os.pwrite(fd, b"third ", 0)
    plain = os.open(f"{root}/log", os.O_RDWR)
    rwf_append = 16
    os.pwritev(plain, [b"fourth"], 0, rwf_append)


def synchronous(root: str) -> None:
    os.write(made(f"{root}/a", os.O_DSYNC), b"1")
    os.write(os.open(f"{root}/a", os.O_WRONLY | os.O_SYNC), b"2")
    fd = os.open(f"{root}/a", os.O_RDWR)
    os.write(fd, b"3")
    os.fsync(fd)
    os.fdatasync(fd)
    LIBC.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 7)
    os.fsync(os.open(root, os.O_RDONLY))


def pages(root: str) -> None:
    fd = made(f"{root}/a")
    os.pwrite(fd, b"p" * 4096, 8192)
    os.pwrite(fd, b"q" * 8192, 0)
    os.pwrite(fd, b"r" * 4097, 0)


def direct(root: str) -> None:
    fd = made(f"{root}/a", os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    page.write(b"d" * 4096)
    os.pwrite(fd, page, 4096)


def opens(root: str) -> None:
    os.close(made(f"{root}/a", 0, 0o640))
    os.close(made(f"{root}/a"))  # nothing: it exists
    os.close(os.open(f"{root}/a", os.O_WRONLY | os.O_TRUNC))
    os.close(os.open(f"{root}/a", os.O_RDONLY))
    os.mkdir(f"{root}/d")
    directory = os.open(f"{root}/d", os.O_RDONLY)
    os.close(os.open(b"b\xff", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=directory))
    how = ctypes.create_string_buffer(struct.pack("=QQQ", os.O_CREAT | os.O_WRONLY, 0o600, 0))
    syscall(ANY_NUMBERS["openat2"], directory, b"c", how, 24)


def resizing(root: str) -> None:
    fd = made(f"{root}/a")
    os.write(fd, b"0123456789")
    os.ftruncate(fd, 4)
    os.truncate(f"{root}/a", 2)
    os.truncate(fd, 8)
    os.posix_fallocate(fd, 0, 20)
    punch_keeping_size = 3
    LIBC.fallocate(fd, punch_keeping_size, ctypes.c_long(0), ctypes.c_long(4096))


def copies(root: str) -> None:
    source = made(f"{root}/source")
    os.write(source, b"abcdefghij")
    target = made(f"{root}/target")
    os.copy_file_range(source, target, 4, 2, 100)
    os.copy_file_range(source, target, 3, 0)
    os.sendfile(target, source, 0, 5)
    reading, writing = os.pipe()
    os.write(writing, b"piped")
    os.splice(reading, target, 5, offset_dst=50)
    os.write(writing, b"again")
    os.splice(reading, target, 5)


def maps(root: str) -> None:
    fd = made(f"{root}/a")
    os.ftruncate(fd, 8192)
    mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=4096)[:3] = b"map"
    mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    mmap.mmap(-1, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def unseen(root: str) -> None:
    context = ctypes.c_long(0)
    syscall(IO_SETUP[platform.machine()], 1, ctypes.byref(context))
    syscall(ANY_NUMBERS["io_uring_setup"], 1, ctypes.create_string_buffer(120))


def unlinked(root: str) -> None:
    fd = made(f"{root}/a")
    os.write(fd, b"named")
    os.unlink(f"{root}/a")
    os.write(fd, b"nameless")
    hidden = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(hidden, b"never named")


def linked_inside(root: str) -> None:
    os.close(made(f"{root}/a"))
    os.link(f"{root}/a", f"{root}/b")
    os.write(os.open(f"{root}/b", os.O_WRONLY), b"by b")


# ----------------------------------------------------------------------------------------------------------
# names


def names(root: str) -> None:
    os.mkdir(f"{root}/d", 0o750)
    os.mkdir(f"{root}/e")
    os.close(made(f"{root}/d/f"))
    os.rename(f"{root}/d/f", f"{root}/e/g")
    os.link(f"{root}/e/g", f"{root}/e/h")
    os.symlink("../e/g", f"{root}/d/s")
    LIBC.renameat2(AT_FDCWD, f"{root}/e/g".encode(), AT_FDCWD, f"{root}/e/h".encode(), 2)
    os.mkfifo(f"{root}/pipe", 0o600)
    os.unlink(f"{root}/e/g")
    os.rmdir(f"{root}/d") if not os.listdir(f"{root}/d") else os.unlink(f"{root}/d/s")
    os.rmdir(f"{root}/d")


def relative_names(root: str) -> None:
    os.chdir(root)
    os.mkdir("d")
    os.mkdir("./d/sub")
    there = os.open("d", os.O_RDONLY)
    os.mkdir("x", dir_fd=there)
    os.rename("x", "y", src_dir_fd=there)
    os.rmdir("y")
    os.rmdir("../d/sub", dir_fd=there)
    with contextlib.suppress(OSError):
        os.rmdir("missing")


def attributes(root: str) -> None:
    fd = made(f"{root}/a", 0, 0o600)
    os.fchmod(fd, 0o640)
    os.fchown(fd, 12, 34)
    os.utime(fd, ns=(1, 2))
    os.chmod(f"{root}/a", 0o644)
    os.chown(f"{root}/a", 56, -1)
    os.lchown(f"{root}/a", -1, 78)
    os.utime(f"{root}/a", ns=(3, 4))
    LIBC.fchownat(fd, b"", 9, 9, AT_EMPTY_PATH)
    syscall(ANY_NUMBERS["fchmodat2"], fd, b"", 0o755, AT_EMPTY_PATH)
    syscall(ANY_NUMBERS["fchmodat2"], AT_FDCWD, f"{root}/a".encode(), 0o700, 0)
    os.fchmod(os.open(root, os.O_RDONLY), 0o711)


def extended(root: str) -> None:
    fd = made(f"{root}/a")
    os.setxattr(fd, "user.one", b"1")
    os.setxattr(f"{root}/a", "user.two", b"22")
    os.setxattr(f"{root}/a", "user.three", b"3", follow_symlinks=False)
    os.removexattr(fd, "user.one")
    os.removexattr(f"{root}/a", "user.two")


def old_calls(root: str) -> None:
    here = root.encode()
    fd = old("creat", here + b"/a", 0o600)
    os.write(fd, b"a")
    old("open", here + b"/b", os.O_CREAT | os.O_WRONLY, 0o600)
    old("link", here + b"/a", here + b"/c")
    old("rename", here + b"/c", here + b"/d")
    old("unlink", here + b"/d")
    old("mkdir", here + b"/e", 0o700)
    old("rmdir", here + b"/e")
    old("symlink", b"a", here + b"/s")
    old("mknod", here + b"/p", 0o010600, 0)
    old("chmod", here + b"/a", 0o640)
    old("chown", here + b"/a", 1, 2)
    old("lchown", here + b"/s", 3, 4)
    old("utime", here + b"/a", None)
    old("utimes", here + b"/a", None)
    old("futimesat", fd, None, None)


def elsewhere(root: str, other: str) -> None:
    """All of it outside the volume; ``root`` stays untouched."""
    os.chdir(other)
    fd = made("a")
    os.write(fd, b"a" * 4096)
    os.ftruncate(fd, 10)
    os.fsync(fd)
    os.fchmod(fd, 0o600)
    os.mkdir("d")
    os.symlink("a", "s")
    os.link("a", "b")
    os.unlink("b")
    mmap.mmap(fd, 10, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


# ------------------------------------------------------------------------------------------------ large, odd,
# many


def pattern(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def large(root: str, size: str) -> None:
    os.write(made(f"{root}/a"), pattern(int(size)))


def many_segments(root: str, count: str, seed: str) -> None:
    sizes = random.Random(seed)
    data = pattern(1 << 20)
    segments = []
    at = 0
    for _ in range(int(count)):
        size = sizes.choice((0, 1, 3, 500, 1500))
        segments.append(data[at : at + size])
        at += size
    fd = made(f"{root}/a")
    os.pwritev(fd, segments, 10)
    os.writev(fd, [b"small", b"er"])


def _wait_for_size(path: str, size: int) -> None:
    deadline = time.monotonic() + 20
    while os.stat(path).st_size < size:
        assert time.monotonic() < deadline


SLOW_SYNC_BYTES = 12 * 1024 * 1024


def buffer_gone(root: str) -> None:
    """The program takes its buffer away when the kernel has copied it and the call still waits for disk."""
    fd = made(f"{root}/a", os.O_SYNC)
    address = LIBC.mmap(None, ctypes.c_long(SLOW_SYNC_BYTES), 3, 0x22, -1, ctypes.c_long(0))
    ctypes.memset(address, 7, SLOW_SYNC_BYTES)
    writer = threading.Thread(
        target=LIBC.write, args=(fd, ctypes.c_void_p(address), ctypes.c_size_t(SLOW_SYNC_BYTES))
    )
    writer.start()
    _wait_for_size(f"{root}/a", SLOW_SYNC_BYTES)
    LIBC.munmap(ctypes.c_void_p(address), ctypes.c_size_t(SLOW_SYNC_BYTES))
    writer.join()


def descriptor_gone(root: str) -> None:
    """The program puts another file under the number of a descriptor while a write to it waits for disk."""
    fd = made(f"{root}/a", os.O_SYNC)
    other = made(f"{root}/b")
    data = bytes(SLOW_SYNC_BYTES)
    writer = threading.Thread(target=os.write, args=(fd, data))
    writer.start()
    _wait_for_size(f"{root}/a", SLOW_SYNC_BYTES)
    os.dup2(other, fd)
    writer.join()


def deep(root: str, levels: str) -> None:
    os.chdir(root)
    for _ in range(int(levels)):
        os.mkdir("d")
        os.chdir("d")
    os.write(made("a"), b"deep")


def linked(root: str, outside: str) -> None:
    fd = made(f"{root}/a")
    os.write(fd, b"inside")
    os.link(f"{root}/a", f"{outside}/twin")
    os.write(os.open(f"{outside}/twin", os.O_WRONLY), b"OUT")


# ----------------------------------------------------------------------------------------------------- at the
# same time


def _in_children(works: list[Callable[[], None]]) -> None:
    children = []
    for work in works:
        pid = os.fork()
        if not pid:
            try:
                work()
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


def append_apart(root: str, rounds: str) -> None:
    """Each process with its own descriptor on one O_APPEND file."""
    os.close(made(f"{root}/a"))

    def work(mark: int) -> None:
        fd = os.open(f"{root}/a", os.O_WRONLY | os.O_APPEND)
        for number in range(int(rounds)):
            os.write(fd, b"%d:%06d\n" % (mark, number) * (number % 5 + 1))

    _in_children([lambda mark=mark: work(mark) for mark in range(4)])  # type: ignore[misc]


def share_position(root: str, rounds: str, flags: str) -> None:
    """All processes through one inherited descriptor, so with one position."""
    fd = made(f"{root}/a", int(flags))

    def work(mark: int) -> None:
        for number in range(int(rounds)):
            os.write(fd, b"%d:%06d\n" % (mark, number) * (number % 3 + 1))

    _in_children([lambda mark=mark: work(mark) for mark in range(3)])  # type: ignore[misc]


def fight(root: str, rounds: str, seed: str) -> None:
    """Overwrites, truncations and appends of one file by four processes, never twice the same bytes."""
    os.close(made(f"{root}/a"))

    def work(mark: int) -> None:
        dice = random.Random(f"{seed}/{mark}")
        fd = os.open(f"{root}/a", os.O_RDWR)
        for number in range(int(rounds)):
            what = dice.random()
            text = b"%d:%06d " % (mark, number) * dice.choice((1, 10, 600))
            if what < 0.9:
                os.pwrite(fd, text, dice.randrange(4) * 2048)
            elif what < 0.94:
                os.ftruncate(fd, dice.randrange(9000))
            elif what < 0.97:
                os.truncate(f"{root}/a", dice.randrange(9000))
            else:
                os.close(os.open(f"{root}/a", os.O_WRONLY | os.O_TRUNC))

    _in_children([lambda mark=mark: work(mark) for mark in range(4)])  # type: ignore[misc]


def fight_over_names(root: str, rounds: str) -> None:
    def work(mark: int) -> None:
        for number in range(int(rounds)):
            mine = f"{root}/{mark}"
            os.write(made(mine), b"%d:%d" % (mark, number))
            os.rename(mine, f"{root}/common")

    _in_children([lambda mark=mark: work(mark) for mark in range(3)])  # type: ignore[misc]


STEP_BYTES = 64 * 1024
STEPS_AT_A_TIME = 16


def stream(root: str, steps: str) -> None:
    """Many writes, a few at a time: each dot on standard input allows the next ones."""
    fd = made(f"{root}/a")
    data = pattern(STEP_BYTES + 4096)
    for step in range(int(steps)):
        if step % STEPS_AT_A_TIME == 0:
            assert os.read(0, 1) == b"."
        shift = step % 4096
        os.pwrite(fd, data[shift : shift + STEP_BYTES], step % 64 * STEP_BYTES)


def flood(root: str, count: str) -> None:
    fd = made(f"{root}/a")
    for number in range(int(count)):
        os.pwrite(fd, bytes(1000), number * 1000)


def locked_pause(root: str) -> None:
    """Write once, tell, and write again when told to."""
    fd = made(f"{root}/a")
    os.write(fd, b"before")
    os.write(1, b"!")
    os.read(0, 1)
    os.write(fd, b"after")
    fcntl.flock(fd, fcntl.LOCK_EX)


if __name__ == "__main__":
    os.umask(0o022)
    globals()[sys.argv[1]](*sys.argv[2:])
