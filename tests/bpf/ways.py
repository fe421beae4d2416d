"""More ways of writing, each a small program: ``python ways.py NAME DIRECTORY [ARGUMENT...]``.

Unlike those of ``acts.py`` their records are not compared: the replica of what they leave is.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import random
import struct
import sys
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
LIBC.mmap.restype = ctypes.c_void_p
PAGE = mmap.PAGESIZE
AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = -100, 0x1000, 0x400
FICLONE = 0x40049409
RWF_DSYNC, RWF_SYNC, RWF_APPEND, RWF_NOAPPEND = 2, 4, 16, 32


def syscall(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(LIBC.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"syscall {number}")
    return result


def made(path: str, flags: int = 0, mode: int = 0o644) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, mode)


def noise(size: int, seed: object = 0) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Where the file system cannot do it, nothing is done."""
    LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length))


def in_children(*works: object) -> None:
    children = []
    for work in works:
        pid = os.fork()
        if not pid:
            try:
                work()  # type: ignore[operator]
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0


def in_threads(*works: object) -> None:
    threads = [threading.Thread(target=work) for work in works]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --------------------------------------------------------------------------------------------- plain content


def flags_of_pwritev2(root: str) -> None:
    fd = made(f"{root}/log", os.O_APPEND)
    os.pwritev(fd, [b"appended;"], 0)
    os.pwritev(fd, [b"at nine;"], 9, RWF_NOAPPEND)
    os.pwritev(fd, [b"AT"], 2, RWF_NOAPPEND | RWF_DSYNC)
    plain = os.open(f"{root}/log", os.O_RDWR)
    os.pwritev(plain, [b"to", b" the end;"], 3, RWF_APPEND | RWF_SYNC)
    iov = (ctypes.c_char_p * 2)(b"here", ctypes.cast(4, ctypes.c_char_p))
    LIBC.pwritev2(plain, iov, 1, ctypes.c_long(-1), 0)


def appends_at_once(root: str) -> None:
    shared = made(f"{root}/shared", os.O_APPEND)
    os.close(made(f"{root}/apart"))

    def work(mark: int) -> None:
        own = os.open(f"{root}/apart", os.O_WRONLY | os.O_APPEND)
        for number in range(60):
            os.write(shared, b"%d:%06d\n" % (mark, number) * (number % 5 + 1))
            os.write(own, b"%d:%06d\n" % (mark, number) * (number % 3 + 1))

    in_children(*(lambda mark=mark: work(mark) for mark in range(3)))


def one_position_for_many(root: str) -> None:
    fd = made(f"{root}/a")

    def work(mark: int) -> None:
        for number in range(80):
            os.write(fd, b"%d:%06d\n" % (mark, number) * (number % 4 + 1))

    in_children(*(lambda mark=mark: work(mark) for mark in range(3)))
    in_threads(*(lambda mark=mark: work(mark + 5) for mark in range(3)))


def threads_at_one_file(root: str) -> None:
    os.close(made(f"{root}/a"))

    def work(mark: int) -> None:
        dice = random.Random(mark)
        fd = os.open(f"{root}/a", os.O_RDWR)
        for number in range(150):
            os.pwrite(fd, b"%d:%06d " % (mark, number) * dice.choice((1, 10, 600)), dice.randrange(4) * 2048)
            if number % 40 == 39:
                os.ftruncate(fd, dice.randrange(9000))

    in_threads(*(lambda mark=mark: work(mark) for mark in range(4)))


def direct(root: str) -> None:
    fd = made(f"{root}/a", os.O_DIRECT)
    pages = mmap.mmap(-1, 4 * PAGE)
    pages[:] = noise(4 * PAGE)
    os.pwrite(fd, pages, 2 * PAGE)
    os.write(fd, memoryview(pages)[:PAGE])
    os.pwritev(fd, [memoryview(pages)[PAGE : 2 * PAGE], memoryview(pages)[:PAGE]], 8 * PAGE)
    os.write(os.open(f"{root}/a", os.O_WRONLY | os.O_DIRECT | os.O_APPEND), pages)


def synchronous(root: str) -> None:
    os.write(made(f"{root}/a", os.O_DSYNC), b"data")
    os.pwrite(os.open(f"{root}/a", os.O_WRONLY | os.O_SYNC), b"all", 2)


def allocations(root: str) -> None:
    fd = made(f"{root}/a")
    os.write(fd, noise(20 * PAGE))
    for mode, offset, length in (
        (0, 19 * PAGE, 3 * PAGE),  # grows
        (1, 20 * PAGE, 9 * PAGE),  # does not
        (3, 100, 3 * PAGE),  # punches
        (0x10, 7 * PAGE + 5, 2 * PAGE),  # zeroes
        (0x10, 21 * PAGE, 3 * PAGE),  # and grows
        (0x11, 23 * PAGE, 9 * PAGE),
        (0x08, 2 * PAGE, 3 * PAGE),  # collapses
        (0x20, 5 * PAGE, 2 * PAGE),  # inserts
        (0x40, 0, 4 * PAGE),  # unshares
    ):
        fallocate(fd, mode, offset, length)
        os.pwrite(fd, b"mark %x" % mode, offset)
    os.posix_fallocate(made(f"{root}/b"), 0, 100_000)


def holes(root: str) -> None:
    fd = made(f"{root}/sparse")
    os.ftruncate(fd, 1 << 34)
    os.pwrite(fd, noise(PAGE), 1 << 33)
    os.pwrite(fd, noise(3 * PAGE), 1 << 20)
    fallocate(fd, 3, (1 << 20) + PAGE, PAGE)
    far = made(f"{root}/far")
    os.pwrite(far, b"far away", (1 << 43) - 5000)


def copies(root: str) -> None:
    source = made(f"{root}/source")
    os.write(source, noise(50_000))
    target = made(f"{root}/target")
    os.copy_file_range(source, target, 9000, 20, 100)
    os.copy_file_range(source, target, 3000, 0)
    os.sendfile(target, source, 0, 5000)
    reading, writing = os.pipe()
    os.write(writing, b"piped")
    os.splice(reading, target, 5, offset_dst=50)
    os.write(writing, b"again")
    os.splice(reading, target, 5)
    other, more = os.pipe()
    os.write(writing, b"tee'd")
    LIBC.tee(reading, more, ctypes.c_size_t(5), 0)
    os.splice(other, target, 5, offset_dst=70)
    with contextlib.suppress(OSError):
        fcntl.ioctl(made(f"{root}/clone"), FICLONE, source)


def large(root: str) -> None:
    os.write(made(f"{root}/a"), noise(17 * 1024 * 1024))
    os.pwritev(made(f"{root}/b"), [noise(1500, n) for n in range(1000)], 10)


# ---------------------------------------------------------------------------------------------------- mappings


def mapped(root: str) -> None:
    fd = made(f"{root}/synced")
    os.ftruncate(fd, 8 * PAGE)
    area = mmap.mmap(fd, 8 * PAGE)
    area[5:9] = b"sync"
    area[6 * PAGE : 6 * PAGE + 4] = b"more"
    area.flush()
    area[5:9] = b"SYNC"
    area.flush(0, PAGE)
    fd = made(f"{root}/unmapped")
    os.pwrite(fd, noise(4 * PAGE), 0)
    area = mmap.mmap(fd, 4 * PAGE)
    area[100:104] = b"over"
    area.close()
    fd = made(f"{root}/private")
    os.pwrite(fd, b"as it was", 0)
    mmap.mmap(fd, 9, flags=mmap.MAP_PRIVATE)[:5] = b"never"


def mapped_and_killed(root: str) -> None:
    fd = made(f"{root}/a")
    os.ftruncate(fd, 40 * PAGE)

    def work() -> None:
        area = mmap.mmap(fd, 40 * PAGE)
        for page in range(0, 40, 3):
            area[page * PAGE : page * PAGE + 3] = b"%03d" % page
        os.kill(os.getpid(), 9)

    pid = os.fork()
    if not pid:
        work()
    os.waitpid(pid, 0)


def mapped_late(root: str) -> None:
    """Pages that a write made dirty before, and a mapping that becomes writable afterwards."""
    fd = made(f"{root}/a")
    os.pwrite(fd, noise(6 * PAGE), 0)
    address = LIBC.mmap(None, ctypes.c_long(6 * PAGE), 1, 1, fd, ctypes.c_long(0))
    assert LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(6 * PAGE), 3) == 0
    ctypes.memmove(address + PAGE + 7, b"stored", 6)
    os.pwrite(fd, b"written", PAGE + 100)
    ctypes.memmove(address + 5 * PAGE, b"stored", 6)


def mapped_and_cleaned(root: str) -> None:
    """Stores between which the kernel writes the pages back."""
    fd = made(f"{root}/a")
    os.pwrite(fd, noise(6 * PAGE), 0)
    area = mmap.mmap(fd, 6 * PAGE)
    for number in range(5):
        area[number * PAGE : number * PAGE + 5] = b"%05d" % number
        area[5 * PAGE : 5 * PAGE + 5] = b"%05d" % number
        LIBC.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 7)
    area[3:6] = b"end"


def cut_under_a_mapping(root: str) -> None:
    fd = made(f"{root}/a")
    os.ftruncate(fd, 8 * PAGE)
    area = mmap.mmap(fd, 8 * PAGE)
    area[: 8 * PAGE] = noise(8 * PAGE)
    os.ftruncate(fd, 3 * PAGE + 10)
    area[2 * PAGE : 2 * PAGE + 4] = b"kept"
    os.ftruncate(fd, 8 * PAGE)
    area[7 * PAGE : 7 * PAGE + 4] = b"last"
    os.truncate(f"{root}/a", 7 * PAGE + 2)


def mapped_through_another(root: str) -> None:
    """One process stores into what another one writes."""
    fd = made(f"{root}/a")
    os.ftruncate(fd, 16 * PAGE)
    area = mmap.mmap(fd, 16 * PAGE)

    def store() -> None:
        for number in range(300):
            at = number % 16 * PAGE + number
            area[at : at + 4] = b"s%03d" % number

    def write() -> None:
        for number in range(300):
            os.pwrite(fd, b"w%03d" % number, number % 16 * PAGE + 2000 + number)

    in_children(store, write)


# ------------------------------------------------------------------------------------------------------- names


def nameless(root: str) -> None:
    """O_TMPFILE, then a name, then more."""
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, noise(10_000))
    os.setxattr(fd, "user.kind", b"tmp")
    by_proc = f"/proc/self/fd/{fd}".encode(), AT_FDCWD, f"{root}/by-proc".encode()
    assert LIBC.linkat(AT_FDCWD, *by_proc, AT_SYMLINK_FOLLOW) == 0
    os.pwrite(fd, b"after", 3)
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"two names")
    assert LIBC.linkat(fd, b"", AT_FDCWD, f"{root}/by-descriptor".encode(), AT_EMPTY_PATH) == 0
    os.link(f"{root}/by-descriptor", f"{root}/second")
    hidden = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(hidden, b"never named")


def links(root: str) -> None:
    os.makedirs(f"{root}/d/e")
    os.write(made(f"{root}/d/a"), b"one file")
    for name in ("b", "d/c", "d/e/f"):
        os.link(f"{root}/d/a", f"{root}/{name}")
    os.symlink("x" * 4000, f"{root}/long")
    os.symlink("d/a", f"{root}/near")
    os.link(f"{root}/near", f"{root}/twin", follow_symlinks=False)
    through = f"{root}/near".encode(), AT_FDCWD, f"{root}/through".encode()
    assert LIBC.linkat(AT_FDCWD, *through, AT_SYMLINK_FOLLOW) == 0
    os.unlink(f"{root}/d/a")
    os.pwrite(os.open(f"{root}/d/e/f", os.O_WRONLY), b"ONE", 0)
    os.mkfifo(f"{root}/pipe", 0o620)
    os.mknod(f"{root}/node", 0o100600)


def moves(root: str) -> None:
    os.makedirs(f"{root}/a/b/c")
    os.write(made(f"{root}/a/b/c/file"), b"content")
    os.rename(f"{root}/a/b", f"{root}/moved")
    os.write(made(f"{root}/moved/c/more"), b"later")
    os.mkdir(f"{root}/other")
    renameat2 = LIBC.renameat2
    renameat2(AT_FDCWD, f"{root}/moved".encode(), AT_FDCWD, f"{root}/other".encode(), 2)
    renameat2(AT_FDCWD, f"{root}/other".encode(), AT_FDCWD, f"{root}/new".encode(), 1)
    fd = made(f"{root}/victim")
    os.write(fd, b"goes on")
    os.rename(made_with(f"{root}/fresh", b"fresh"), f"{root}/victim")
    os.write(fd, b" without a name")
    os.fchmod(fd, 0o600)
    open_one = made(f"{root}/open")
    os.write(open_one, b"before ")
    os.rename(f"{root}/open", f"{root}/new/open")
    os.write(open_one, b"after")
    os.unlink(f"{root}/new/c/more")


def made_with(path: str, content: bytes) -> str:
    fd = made(path)
    os.write(fd, content)
    os.close(fd)
    return path


def directories_in_a_storm(root: str) -> None:
    """Directories made and moved so fast that whoever looks them up finds another one."""
    for number in range(150):
        os.mkdir(f"{root}/d")
        os.rename(f"{root}/d", f"{root}/{number}")
        os.close(made(f"{root}/{number}/f"))
        if number % 3 == 0:
            os.symlink(f"{number}", f"{root}/s")
            os.rename(f"{root}/s", f"{root}/s{number}")
            os.rename(f"{root}/{number}/f", f"{root}/f")
            os.rmdir(f"{root}/{number}")


def many_name_at_once(root: str) -> None:
    def work(mark: int) -> None:
        for number in range(60):
            mine = f"{root}/{mark}"
            os.write(made(mine), b"%d:%d" % (mark, number))
            os.rename(mine, f"{root}/common")
            with contextlib.suppress(OSError):
                os.mkdir(f"{root}/d")
            with contextlib.suppress(OSError):
                os.rename(f"{root}/d", f"{root}/d{mark}")
            with contextlib.suppress(OSError):
                os.rmdir(f"{root}/d{mark}")

    in_children(*(lambda mark=mark: work(mark) for mark in range(3)))


def odd_names(root: str) -> None:
    top = os.fsencode(root)
    for name in (b"\xff\xfe", b"n" * 255, b"new\nline", b"tab\t", b'"', b"..x", b" ", "é".encode(), b"\\"):
        os.mkdir(top + b"/d" + name[:254])
        fd = os.open(top + b"/d" + name[:254] + b"/" + name, os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, name)
        os.symlink(name, top + b"/s" + name[:254])
    os.rename(top + b"/d\xff\xfe", top + b"/d\xfe\xff")


def deep(root: str) -> None:
    os.chdir(root)
    for number in range(300):
        os.mkdir(f"directory-{number:03}")
        os.chdir(f"directory-{number:03}")
    os.write(made("a"), b"deep")
    os.rename("a", "b")
    os.symlink("b", "s")
    os.chdir(root)
    os.rename("directory-000", "moved")


# -------------------------------------------------------------------------------------------------- attributes


def access_list(user: int, bits: int) -> bytes:
    """A POSIX ACL as an extended attribute: owner rw, one user, group r, mask rw, others nothing."""
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, bits, user), (4, 4, nobody), (16, 6, nobody), (32, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def attributes(root: str) -> None:
    fd = made(f"{root}/a", 0, 0o600)
    os.fchmod(fd, 0o640)
    os.chown(f"{root}/a", 12, 34)
    os.chmod(f"{root}/a", 0o2755)
    os.mkdir(f"{root}/d")
    os.chmod(f"{root}/d", 0o1777)
    os.chown(f"{root}/d", 5, 6)
    os.symlink("a", f"{root}/s")
    os.lchown(f"{root}/s", 7, 8)
    os.chmod(root, 0o711)


def times(root: str) -> None:
    for name in ("now", "given", "by-descriptor", "of-change", "kept", "written-later"):
        os.write(made(f"{root}/{name}"), b"content")
    os.utime(f"{root}/now")
    os.utime(f"{root}/given", ns=(1_111_111_111_222_222_222, 1_333_333_333_444_444_444))
    fd = os.open(f"{root}/by-descriptor", os.O_RDONLY)
    os.utime(fd, ns=(5_000_000_006, 7_000_000_008))
    omit = struct.pack("=qqqq", 0, 0x3FFFFFFE, 99, 77)
    LIBC.utimensat(AT_FDCWD, f"{root}/of-change".encode(), omit, 0)
    os.utime(f"{root}/kept", ns=(1, 2))
    os.chmod(f"{root}/kept", 0o600)
    os.utime(f"{root}/written-later", ns=(1, 2))
    os.write(os.open(f"{root}/written-later", os.O_WRONLY | os.O_APPEND), b"!")
    os.symlink("given", f"{root}/link")
    os.utime(f"{root}/link", ns=(3, 4), follow_symlinks=False)


def extended(root: str) -> None:
    fd = made(f"{root}/a")
    os.setxattr(fd, "user.one", b"1")
    os.setxattr(f"{root}/a", "user.two", b"")
    os.setxattr(f"{root}/a", "user.large", noise(3000))
    os.setxattr(f"{root}/a", "user.one", b"changed", os.XATTR_REPLACE)
    os.removexattr(f"{root}/a", "user.two")
    os.mkdir(f"{root}/d")
    os.setxattr(f"{root}/d", "user.of directory", b"d")
    os.setxattr(f"{root}/a", "system.posix_acl_access", access_list(42, 6))
    os.setxattr(f"{root}/d", "system.posix_acl_default", access_list(43, 4))
    os.close(made(f"{root}/d/heir", 0, 0o666))
    os.mkdir(f"{root}/d/deeper")
    os.chmod(f"{root}/a", 0o640)


def seen_otherwise(root: str, other: str) -> None:
    """Through a bind mount in a mount namespace of its own, as a container sees a directory."""
    assert LIBC.unshare(0x00020000) == 0
    assert LIBC.mount(b"none", b"/", None, ctypes.c_ulong(0x4000 | 0x40000), None) == 0
    assert LIBC.mount(root.encode(), other.encode(), None, ctypes.c_ulong(0x1000), None) == 0
    os.mkdir(f"{other}/d")
    os.write(made(f"{other}/d/a"), b"by another path")
    os.rename(f"{other}/d/a", f"{other}/b")
    os.chroot(other)
    os.chdir("/d")
    os.write(made("/c"), b"by the root")
    os.symlink("/c", "s")
    os.truncate("s", 6)
    os.rename("s", "../t")
    area = mmap.mmap(made("/c"), 6)
    area[:2] = b"BY"


if __name__ == "__main__":
    os.umask(0o022)
    globals()[sys.argv[1]](*sys.argv[2:])
