"""Ways of writing that one call asks for and none does: Linux AIO and io_uring, by their bare system calls.

``python ways_async.py NAME DIRECTORY``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import random
import struct
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
PAGE = mmap.PAGESIZE
AT_FDCWD = -100
_X86 = platform.machine() == "x86_64"
IO_SETUP, IO_SUBMIT, IO_GETEVENTS = (206, 209, 208) if _X86 else (0, 2, 4)
URING_SETUP, URING_ENTER = 425, 426


def syscall(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(LIBC.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"syscall {number}")
    return result


def noise(size: int, seed: object = 0) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def made(path: str, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)


class Buffer:
    """Memory with an address, on a page of its own as direct I/O wants it."""

    def __init__(self, data: bytes) -> None:
        self.memory = mmap.mmap(-1, max(PAGE, len(data)))
        self.memory[: len(data)] = data
        self.size = len(data)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))


# -------------------------------------------------------------------------------------------------------- AIO


class Aio:
    """``PWRITE`` is 1, ``PWRITEV`` 8."""

    def __init__(self) -> None:
        context = ctypes.c_long(0)
        syscall(IO_SETUP, 64, ctypes.byref(context))
        self.context = context.value
        self.kept: list[object] = []

    def submit(self, *requests: tuple[int, int, int, int, int]) -> None:
        """(operation, descriptor, address, size, offset) each."""
        blocks = []
        for operation, fd, address, size, offset in requests:
            packed = struct.pack("=QIIHHIQQqQII", 0, 0, 0, operation, 0, fd, address, size, offset, 0, 0, 0)
            blocks.append(ctypes.create_string_buffer(packed, 64))
        table = (ctypes.c_void_p * len(blocks))(*(ctypes.addressof(block) for block in blocks))
        self.kept += [blocks, table]
        assert syscall(IO_SUBMIT, self.context, len(blocks), table) == len(blocks)

    def wait(self, count: int) -> None:
        events = ctypes.create_string_buffer(32 * count)
        assert syscall(IO_GETEVENTS, self.context, count, count, events, None) == count


def aio_buffered(root: str) -> None:
    aio, fd = Aio(), made(f"{root}/a")
    one, two = Buffer(noise(5000)), Buffer(noise(9000, 2))
    vector = Buffer(struct.pack("=QQQQ", one.address, 100, two.address, 200))
    aio.submit((1, fd, one.address, 5000, 10), (1, fd, two.address, 9000, 4000))
    aio.wait(2)
    aio.submit((8, fd, vector.address, 2, 20_000))
    aio.wait(1)


def aio_direct(root: str) -> None:
    aio, fd = Aio(), made(f"{root}/a", os.O_DIRECT)
    os.ftruncate(fd, 64 * PAGE)
    buffers = [Buffer(noise(2 * PAGE, number)) for number in range(16)]
    aio.submit(*((1, fd, buffer.address, 2 * PAGE, 4 * PAGE * n) for n, buffer in enumerate(buffers)))
    aio.wait(16)
    aio.submit(*((1, fd, buffer.address, PAGE, 4 * PAGE * n) for n, buffer in enumerate(buffers[::-1])))
    time.sleep(0.2)  # never asked whether they are done: reaping needs no call


# --------------------------------------------------------------------------------------------------- io_uring

WRITEV, WRITE, FALLOCATE, OPENAT, SPLICE, FTRUNCATE = 2, 23, 17, 18, 30, 55
RENAMEAT, UNLINKAT, MKDIRAT, SYMLINKAT, LINKAT, FSETXATTR = 35, 36, 37, 38, 39, 41
SKIP_COMPLETION = 1 << 6
ASYNC = 1 << 4


class Uring:
    """One ring, one request at a time or a few at once."""

    def __init__(self) -> None:
        parameters = ctypes.create_string_buffer(120)
        self.fd = syscall(URING_SETUP, 32, parameters)
        words = struct.unpack("=30I", parameters.raw)
        submissions, completions = words[10:20], words[20:30]
        self._tail_at, self._mask, self._array_at = submissions[1], words[0] - 1, submissions[6]
        self._cq_head_at, self._cq_tail_at, self._cqes_at = completions[0], completions[1], completions[5]
        self._cq_mask = words[1] - 1
        size = max(submissions[6] + 4 * words[0], completions[5] + 16 * words[1])
        self._ring = mmap.mmap(self.fd, size, offset=0)
        self._entries = mmap.mmap(self.fd, 64 * words[0], offset=0x10000000)
        self.kept: list[object] = []

    def put(
        self, operation: int, fd: int, offset: int, address: int, size: int, extra: int = 0, flags: int = 0
    ) -> None:
        (tail,) = struct.unpack_from("=I", self._ring, self._tail_at)
        index = tail & self._mask
        entry = struct.pack(
            "=BBHiQQIIQHHiQQ",
            operation, flags, 0, fd, offset & (1 << 64) - 1, address, size, extra, 1, 0, 0, 0, 0, 0,
        )  # fmt: skip
        self._entries[64 * index : 64 * index + 64] = entry
        struct.pack_into("=I", self._ring, self._array_at + 4 * index, index)
        struct.pack_into("=I", self._ring, self._tail_at, tail + 1)

    def enter(self, count: int, wait: int | None = None) -> list[int]:
        """Submit, wait for as many; their results."""
        wait = count if wait is None else wait
        wait_for_events = 1
        assert syscall(URING_ENTER, self.fd, count, wait, wait_for_events, None, 0) == count
        head, tail = (
            struct.unpack_from("=I", self._ring, at)[0] for at in (self._cq_head_at, self._cq_tail_at)
        )
        results = []
        while head != tail:
            results.append(
                struct.unpack_from("=Qi", self._ring, self._cqes_at + 16 * (head & self._cq_mask))[1]
            )
            head += 1
        struct.pack_into("=I", self._ring, self._cq_head_at, head)
        return results

    def do(self, *request: int, flags: int = 0) -> int:
        self.put(*request, flags=flags)  # type: ignore[misc]
        (result,) = self.enter(1)
        if result < 0:
            raise OSError(-result, os.strerror(-result), f"operation {request[0]}")
        return result


def text(ring: Uring, value: str) -> int:
    buffer = ctypes.create_string_buffer(os.fsencode(value))
    ring.kept.append(buffer)
    return ctypes.addressof(buffer)


def uring_writes(root: str) -> None:
    ring, fd = Uring(), made(f"{root}/a")
    one, two = Buffer(noise(6000)), Buffer(noise(3000, 2))
    ring.do(WRITE, fd, 100, one.address, 6000)
    ring.do(WRITE, fd, 20_000, two.address, 3000, 0, flags=ASYNC)
    vector = Buffer(struct.pack("=QQQQ", one.address, 10, two.address, 2000))
    ring.do(WRITEV, fd, 30_000, vector.address, 2)
    ring.do(WRITE, fd, -1, one.address, 50)
    ring.do(WRITE, fd, -1, one.address, 50)
    log = made(f"{root}/log", os.O_APPEND)
    for _ in range(5):
        ring.do(WRITE, log, 0, two.address, 777)
    for number in range(20):
        ring.put(WRITE, fd, 50_000 + 500 * number, one.address + number, 500)
    ring.enter(20)
    os.pwrite(fd, b"by a call", 50_100)


def uring_direct(root: str) -> None:
    ring, fd = Uring(), made(f"{root}/a", os.O_DIRECT)
    os.ftruncate(fd, 100 * PAGE)
    buffers = [Buffer(noise(PAGE, number)) for number in range(20)]
    for number, buffer in enumerate(buffers):
        ring.put(WRITE, fd, 5 * PAGE * number, buffer.address, PAGE)
    ring.enter(20)


def uring_content(root: str) -> None:
    ring, fd = Uring(), made(f"{root}/a")
    os.write(fd, noise(40_000))
    ring.do(FALLOCATE, fd, 4096, 8192, 3)  # punches
    ring.do(FTRUNCATE, fd, 30_001, 0, 0)
    reading, writing = os.pipe()
    os.write(writing, b"piped")
    ring.put(SPLICE, fd, 77, (1 << 64) - 1, 5)
    # splice_fd_in stands where the file index does.
    at = 64 * ((struct.unpack_from("=I", ring._ring, ring._tail_at)[0] - 1) & ring._mask) + 44
    ring._entries[at : at + 4] = struct.pack("=i", reading)
    assert ring.enter(1) == [5]
    value = Buffer(b"value")
    ring.do(FSETXATTR, fd, value.address, text(ring, "user.uring"), 5)


def uring_names(root: str) -> None:
    ring = Uring()
    os.write(made(f"{root}/seen"), b"so that this process is known to write here")
    ring.do(MKDIRAT, AT_FDCWD, 0, text(ring, f"{root}/d"), 0o755)
    fd = ring.do(OPENAT, AT_FDCWD, 0, text(ring, f"{root}/d/a"), 0o644, os.O_CREAT | os.O_RDWR)
    data = Buffer(noise(7000))
    ring.do(WRITE, fd, 10, data.address, 7000)
    ring.do(SYMLINKAT, AT_FDCWD, text(ring, f"{root}/s"), text(ring, "d/a"), 0)
    ring.do(LINKAT, AT_FDCWD, text(ring, f"{root}/b"), text(ring, f"{root}/d/a"), AT_FDCWD & 0xFFFFFFFF)
    ring.do(RENAMEAT, AT_FDCWD, text(ring, f"{root}/c"), text(ring, f"{root}/b"), AT_FDCWD & 0xFFFFFFFF)
    ring.do(UNLINKAT, AT_FDCWD, 0, text(ring, f"{root}/seen"), 0)
    ring.do(OPENAT, AT_FDCWD, 0, text(ring, f"{root}/c"), 0, os.O_TRUNC | os.O_WRONLY)


def uring_silent(root: str) -> None:
    """Writes whose completion nobody wants to hear of."""
    ring, fd = Uring(), made(f"{root}/a")
    os.write(fd, bytes(20_000))
    data = Buffer(noise(5000))
    for number in range(4):
        ring.put(WRITE, fd, 5000 * number, data.address, 100 + number, flags=SKIP_COMPLETION)
    assert ring.enter(4, 0) == []
    time.sleep(0.1)


if __name__ == "__main__":
    os.umask(0o022)
    globals()[sys.argv[1]](*sys.argv[2:])
