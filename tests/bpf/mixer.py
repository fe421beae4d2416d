"""A program that mixes every way of writing from a seed: ``mixer.py ROOT OUTSIDE [names-by-ring]`` reads lines ``SEED STEPS`` from
its standard input, does so many random acts below the root for each, and answers with a line.

It keeps descriptors and mappings open from one line to the next. Acts that the file system refuses count too:
they must change nothing. Stores into mappings are made by children, for another mixer may cut the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import random
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bpf import ways, ways_async

PAGE = mmap.PAGESIZE
KEPT_MAX = 6
SIZE_MAX = 200_000
NAMES = [b"a", b"b", b"c", b"d", b"e", b"\xff\xfe", b"n" * 255]
FALLOCATE_MODES = [0, 1, 3, 0x08, 0x10, 0x11, 0x20, 0x40]


class Mixer:
    def __init__(self, root: str, outside: str, *, names_by_ring: bool) -> None:
        self.root = os.fsencode(root)
        self.outside = os.fsencode(outside)
        self.dice = random.Random()
        self.fds: list[int] = []
        self.areas: list[mmap.mmap] = []
        self.aio = ways_async.Aio()
        self.ring = ways_async.Uring()
        self.buffer = ways_async.Buffer(ways.noise(64 * 1024))
        content: list[Callable[[], object]] = [
            self.write, self.write_at, self.write_vector, self.append, self.write_direct, self.write_synchronous,
            self.cut, self.cut_by_name, self.allocate, self.copy, self.send, self.splice, self.clone,
            self.write_by_aio, self.write_by_ring, self.write_by_threads, self.write_by_child,
            self.map, self.store, self.store, self.sync, self.unmap,
        ]  # fmt: skip
        names: list[Callable[[], object]] = [
            self.open, self.open, self.open_anew, self.close, self.unlink, self.rename, self.rename, self.exchange,
            self.make_directory, self.make_directory, self.remove_directory, self.link, self.symlink, self.fifo,
            self.name_the_nameless, self.move_out, self.move_in, self.names_by_ring,
        ]  # fmt: skip
        described: list[Callable[[], object]] = [
            self.mode,
            self.owner,
            self.times,
            self.xattr,
            self.access_list,
            self.descriptor_mode,
        ]
        if not names_by_ring:
            names.remove(self.names_by_ring)
        self.acts = content * 2 + names * 2 + described

    def run(self, seed: str, steps: int) -> None:
        self.dice.seed(seed)
        for _ in range(steps):
            with contextlib.suppress(OSError, ValueError, LookupError):
                self.dice.choice(self.acts)()

    # ---- choices

    def path(self) -> bytes:
        parts = [self.dice.choice(NAMES) for _ in range(self.dice.choice((1, 1, 1, 2, 2, 3)))]
        return b"/".join((self.root, *parts))

    def fd(self) -> int:
        if not self.fds:
            self.open()
        return self.dice.choice(self.fds)

    def offset(self) -> int:
        return self.dice.choice((0, 1, 100, PAGE, 3 * PAGE - 1, self.dice.randrange(SIZE_MAX)))

    def data(self) -> bytes:
        mark = b"%d:%x " % (os.getpid(), self.dice.randrange(1 << 32))
        return mark * self.dice.choice((1, 1, 10, 300, 800))

    def keep(self, fd: int) -> None:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)  # a FIFO, on which writes would wait for a reader
            return
        self.fds.append(fd)
        if len(self.fds) > KEPT_MAX:
            os.close(self.fds.pop(0))

    # ---- content

    def open(self) -> None:
        flags = self.dice.choice((0, 0, os.O_APPEND, os.O_DSYNC, os.O_EXCL, os.O_NOFOLLOW))
        self.keep(os.open(self.path(), os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | flags, 0o644))

    def open_anew(self) -> None:
        self.keep(os.open(self.path(), os.O_RDWR | os.O_TRUNC | os.O_NONBLOCK))

    def close(self) -> None:
        os.close(self.fds.pop(self.dice.randrange(len(self.fds) or 1)))

    def write(self) -> None:
        fd = self.fd()
        os.lseek(fd, self.offset(), os.SEEK_SET)
        os.write(fd, self.data())
        os.write(fd, self.data())

    def write_at(self) -> None:
        os.pwrite(self.fd(), self.data(), self.offset())

    def write_vector(self) -> None:
        flags = self.dice.choice((0, ways.RWF_APPEND, ways.RWF_NOAPPEND, ways.RWF_DSYNC))
        os.pwritev(self.fd(), [self.data(), b"", self.data()], self.offset(), flags)

    def append(self) -> None:
        fd = os.open(self.path(), os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        os.write(fd, self.data())
        os.close(fd)

    def write_direct(self) -> None:
        fd = os.open(self.path(), os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_NONBLOCK, 0o600)
        try:
            os.pwrite(fd, memoryview(self.buffer.memory)[: 2 * PAGE], PAGE * self.dice.randrange(20))
        finally:
            os.close(fd)

    def write_synchronous(self) -> None:
        fd = os.open(self.path(), os.O_WRONLY | os.O_SYNC | os.O_NONBLOCK)
        os.write(fd, b"synchronous")
        os.close(fd)

    def cut(self) -> None:
        os.ftruncate(self.fd(), self.offset())

    def cut_by_name(self) -> None:
        os.truncate(self.path(), self.offset())

    def allocate(self) -> None:
        unit = self.dice.choice((1, PAGE))
        size = PAGE * self.dice.randrange(1, 6)
        ways.fallocate(self.fd(), self.dice.choice(FALLOCATE_MODES), self.offset() // unit * unit, size)

    def copy(self) -> None:
        os.copy_file_range(self.fd(), self.fd(), self.dice.randrange(30_000), self.offset(), self.offset())

    def send(self) -> None:
        os.sendfile(self.fd(), self.fd(), self.offset(), self.dice.randrange(30_000))

    def splice(self) -> None:
        reading, writing = os.pipe()
        try:
            os.write(writing, self.data()[:4000])
            os.splice(reading, self.fd(), 4000, offset_dst=self.offset())
        finally:
            os.close(reading)
            os.close(writing)

    def clone(self) -> None:
        fcntl.ioctl(self.fd(), ways.FICLONE, self.fd())

    def write_by_aio(self) -> None:
        fd = self.fd()
        starts = [self.offset() for _ in range(self.dice.randrange(1, 4))]
        address = self.buffer.address + self.dice.randrange(30_000)
        self.aio.submit(*((1, fd, address, 3000, at) for at in starts))
        self.aio.wait(len(starts))

    def write_by_ring(self) -> None:
        fd, count = self.fd(), self.dice.randrange(1, 5)
        for _ in range(count):
            address = self.buffer.address + self.dice.randrange(30_000)
            self.ring.put(ways_async.WRITE, fd, self.offset(), address, self.dice.randrange(1, 5000))
        self.ring.enter(count)

    def write_by_threads(self) -> None:
        fd, pieces = self.fd(), [(self.data(), self.offset()) for _ in range(6)]
        threads = [threading.Thread(target=_pwrite, args=(fd, *piece)) for piece in pieces]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def write_by_child(self) -> None:
        """At the same position as the parent, at the same time."""
        fd, data = self.fd(), self.data()
        pid = os.fork()
        if not pid:
            with contextlib.suppress(OSError):
                os.write(fd, data)
                os.write(fd, data)
            os._exit(0)
        try:
            os.write(fd, data)
        finally:
            os.waitpid(pid, 0)

    # ---- mappings

    def map(self) -> None:
        self.areas.append(mmap.mmap(self.fd(), 0))
        if len(self.areas) > KEPT_MAX:
            self.areas.pop(0).close()

    def store(self) -> None:
        area = self.dice.choice(self.areas or [mmap.mmap(-1, PAGE)])
        places = [self.dice.randrange(len(area)) for _ in range(5)]
        pid = os.fork()
        if not pid:
            with contextlib.suppress(LookupError):  # at the very end of the file
                for at in places:
                    area[at : at + 3] = b"%03d" % (at % 1000)
            os._exit(0)
        os.waitpid(pid, 0)

    def sync(self) -> None:
        os.fsync(self.fd())
        for area in self.areas:
            area.flush()

    def unmap(self) -> None:
        self.areas.pop(0).close() if self.areas else None

    # ---- names

    def unlink(self) -> None:
        os.unlink(self.path())

    def rename(self) -> None:
        os.rename(self.path(), self.path())

    def exchange(self) -> None:
        flags = self.dice.choice((1, 2, 2))
        ways.LIBC.renameat2(ways.AT_FDCWD, self.path(), ways.AT_FDCWD, self.path(), flags)

    def make_directory(self) -> None:
        os.mkdir(self.path(), self.dice.choice((0o755, 0o700)))

    def remove_directory(self) -> None:
        os.rmdir(self.path())

    def link(self) -> None:
        os.link(self.path(), self.path(), follow_symlinks=False)

    def symlink(self) -> None:
        os.symlink(self.dice.choice((b"a", b"../b", b"d/e", self.path())), self.path())

    def fifo(self) -> None:
        os.mkfifo(self.path(), 0o600)

    def name_the_nameless(self) -> None:
        fd = os.open(self.root, os.O_TMPFILE | os.O_RDWR, 0o640)
        os.write(fd, self.data())
        ways.LIBC.linkat(fd, b"", ways.AT_FDCWD, self.path(), ways.AT_EMPTY_PATH)
        self.keep(fd)

    def move_out(self) -> None:
        os.rename(self.path(), self.outside + b"/%d" % self.dice.randrange(3))

    def move_in(self) -> None:
        os.rename(self.outside + b"/%d" % self.dice.randrange(3), self.path())

    def names_by_ring(self) -> None:
        here = ctypes.create_string_buffer(self.path())
        there = ctypes.create_string_buffer(self.path())
        at = ctypes.addressof
        here_and_there = at(there), at(here), ways.AT_FDCWD & 0xFFFFFFFF
        requests = (
            (ways_async.MKDIRAT, ways.AT_FDCWD, 0, at(here), 0o755),
            (ways_async.RENAMEAT, ways.AT_FDCWD, *here_and_there),
            (ways_async.UNLINKAT, ways.AT_FDCWD, 0, at(here), 0),
        )
        self.ring.do(*self.dice.choice(requests))

    # ---- what files are

    def mode(self) -> None:
        os.chmod(self.path(), self.dice.choice((0o600, 0o644, 0o755, 0o1777)))

    def descriptor_mode(self) -> None:
        os.fchmod(self.fd(), self.dice.choice((0o600, 0o666)))

    def owner(self) -> None:
        os.chown(self.path(), self.dice.randrange(3), self.dice.randrange(3), follow_symlinks=False)

    def times(self) -> None:
        seconds = self.dice.randrange(1, 1 << 31)
        if self.dice.random() < 0.5:
            os.utime(self.path(), ns=(seconds, seconds * 10**9 + 7), follow_symlinks=False)
        else:
            os.utime(self.fd(), ns=(seconds, seconds * 10**9 + 8))

    def xattr(self) -> None:
        name = self.dice.choice(("user.x", "user.y"))
        if self.dice.random() < 0.7:
            os.setxattr(self.path(), name, self.data()[:1000])
        else:
            os.removexattr(self.fd(), name)

    def access_list(self) -> None:
        value = ways.access_list(self.dice.randrange(1, 9), self.dice.choice((4, 6)))
        os.setxattr(self.path(), "system.posix_acl_access", value)


def _pwrite(fd: int, data: bytes, offset: int) -> None:
    with contextlib.suppress(OSError):
        os.pwrite(fd, data, offset)


if __name__ == "__main__":
    os.umask(0o022)
    mixer = Mixer(sys.argv[1], sys.argv[2], names_by_ring="names-by-ring" in sys.argv)
    for line in sys.stdin:
        seed, steps = line.split()
        mixer.run(seed, int(steps))
        print("done", flush=True)
