"""``holder_process.py FOLDER GROUP``: a process that holds a group of events and cannot be killed away from it.

It waits for the answer to one request of a FUSE mount of its own, which has no place in any directory and which it
serves itself: once the request was taken nobody answers. Such a wait sleeps like any other, costs nothing, and takes no
signal into account: after SIGKILL the process stays, with its descriptors, until somebody who may takes the mount's
descriptor from it and answers (``holders``). The kernel's ``request_wait_answer`` says so: a request that is in user space
is waited out.

Standard library only, by its file name: it is started beside every tree, so it has to be there soon.
"""

import ctypes
import json
import os
import signal
import struct
import sys
import threading

# The same on every architecture.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_SET_STRING, _CREATE = 1, 6
_CLOEXEC = 1
_MOUNT_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
# uapi/linux/fuse.h: struct fuse_in_header, fuse_out_header, fuse_init_out.
_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_INIT_OUT = struct.Struct("<IIIIHHII36x")
_INIT = 26
_MOST_REQUEST = 128 * 1024
_SET_NAME = 15


def main() -> None:
    folder, group = sys.argv[1], int(sys.argv[2])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_NAME, b"dk-holder", 0, 0, 0)
    # An orderly end comes by an answer; what a session or a shutdown sends first is for those who can act on it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount = _mount(libc, fuse)
    taker = threading.Thread(target=_take, args=(fuse, folder, group))
    taker.start()
    try:
        os.stat("held", dir_fd=mount)
    except FileNotFoundError:
        os._exit(0)  # it was answered


def _mount(libc: ctypes.CDLL, fuse: int) -> int:
    context = _checked(libc.syscall(_FSOPEN, b"fuse", _CLOEXEC))
    options = {b"source": b"dk-holder", b"fd": b"%d" % fuse, b"rootmode": b"40000"}
    for key, value in (options | {b"user_id": b"%d" % os.getuid(), b"group_id": b"%d" % os.getgid()}).items():
        _checked(libc.syscall(_FSCONFIG, context, _SET_STRING, key, value, 0))
    _checked(libc.syscall(_FSCONFIG, context, _CREATE, None, None, 0))
    return _checked(libc.syscall(_FSMOUNT, context, _CLOEXEC, _MOUNT_NOSUID_NODEV_NOEXEC))


def _take(fuse: int, folder: str, group: int) -> None:
    """Take the first request, say who can answer it, and leave it."""
    while True:
        unique, opcode = _request(fuse)
        if opcode != _INIT:
            break
        answer = _INIT_OUT.pack(7, 31, 65536, 0, 0, 0, 4096, 1)
        os.write(fuse, _OUT.pack(_OUT.size + len(answer), 0, unique) + answer)
    try:
        _tell(folder, {"group": group, "fuse": fuse, "unique": unique})
    except OSError:
        os._exit(1)  # the tree is no more


def _request(fuse: int) -> tuple[int, int]:
    head = os.read(fuse, _MOST_REQUEST)
    _, opcode, unique, *_ = _IN.unpack_from(head)
    return unique, opcode


def _tell(folder: str, facts: dict[str, int]) -> None:
    pid = os.getpid()
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    path = f"{folder}/holder-{pid}"
    with open(f"{path}.new", "x", encoding="ascii") as file:
        json.dump(facts | {"pid": pid, "ticks": ticks}, file)
    os.rename(f"{path}.new", f"{path}.json")


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


if __name__ == "__main__":
    main()
