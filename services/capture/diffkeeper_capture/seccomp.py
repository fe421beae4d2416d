"""The kernel's side of the gate: a seccomp filter with user notification, by raw system calls.

``install`` puts the filter on the calling thread (and all it forks and execs) and gives the listener: a
descriptor on which a stopped system call can be received and let go on. The only answer ever given is
CONTINUE, so the program gets the kernel's own result: the gate delays a call, it never invents one. What it could not
delay, the syncs of io_uring, it does not let a program begin, unless that is asked for. Only standard library here: the
run wrapper imports it.

A received call waits killable only, so that a signal does not turn a long fsync into EINTR, which no program
expects of one. That holds from the moment it is received: whoever holds the listener receives at once, also
while nobody can answer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
from dataclasses import dataclass

from diffkeeper.domain import errors
from diffkeeper_capture import sync_calls

_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1
_FLAG_NEW_LISTENER = 1 << 3
_FLAG_WAIT_KILLABLE_RECV = 1 << 5  # since Linux 5.19
_PR_SET_NO_NEW_PRIVS = 38

_RET_ALLOW = 0x7FFF0000
_RET_USER_NOTIF = 0x7FC00000
# As the kernel's own switch (kernel.io_uring_disabled) says it.
_RET_ERRNO = 0x00050000

# _IOWR('!', 0, 80), _IOWR('!', 1, 24), _IOW('!', 2, 8), _IOW('!', 4, 8) of <linux/seccomp.h>.
_NOTIF_RECV = 0xC0502100
_NOTIF_SEND = 0xC0182101
_NOTIF_ID_VALID = 0x40082102
_SET_FLAGS = 0x40082104
_FLAG_CONTINUE = 1
_FD_SYNC_WAKE_UP = 1  # since Linux 6.6

_NOTIF = struct.Struct("<QIIiIQ6Q")  # id, pid, flags, nr, arch, instruction pointer, args
_RESPONSE = struct.Struct("<QqiI")  # id, val, error, flags
assert (_NOTIF.size, _RESPONSE.size) == (80, 24)

# Classic BPF: load word absolute, jump if equal, return constant. The offsets are those of struct
# seccomp_data.
_LD_W_ABS, _JMP_JEQ_K, _RET_K = 0x20, 0x15, 0x06
_AT_NUMBER, _AT_ARCH = 0, 4
_INSTRUCTION = struct.Struct("<HBBI")

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Stopped:
    """A system call that waits in the kernel."""

    id: int
    pid: int  # of the thread, in the receiver's pid namespace
    call: str
    args: tuple[int, ...]


def assemble(arches: tuple[int, ...], *, io_uring: bool = False) -> bytes:
    """The filter: notify on the sync calls of each architecture, refuse io_uring unless it is allowed, allow everything
    else.
    """
    refused = () if io_uring else (sync_calls.IO_URING_SETUP,)
    program = [_INSTRUCTION.pack(_LD_W_ABS, 0, 0, _AT_ARCH)]
    for arch in arches:
        numbers = sorted(sync_calls.NUMBERS[arch])
        # Over this architecture's block: the load, two for each refused call, the jumps, and the two returns.
        program.append(_INSTRUCTION.pack(_JMP_JEQ_K, 0, 2 * len(refused) + len(numbers) + 3, arch))
        program.append(_INSTRUCTION.pack(_LD_W_ABS, 0, 0, _AT_NUMBER))
        for number in refused:
            program.append(_INSTRUCTION.pack(_JMP_JEQ_K, 0, 1, number))
            program.append(_INSTRUCTION.pack(_RET_K, 0, 0, _RET_ERRNO | errno.EPERM))
        for index, number in enumerate(numbers):
            program.append(_INSTRUCTION.pack(_JMP_JEQ_K, len(numbers) - index, 0, number))
        program.append(_INSTRUCTION.pack(_RET_K, 0, 0, _RET_ALLOW))
        program.append(_INSTRUCTION.pack(_RET_K, 0, 0, _RET_USER_NOTIF))
    program.append(_INSTRUCTION.pack(_RET_K, 0, 0, _RET_ALLOW))
    return b"".join(program)


def install(*, io_uring: bool = False) -> int:
    """Put the filter on this thread; the listener's descriptor (close-on-exec). Raises Misconfigured where
    it cannot be.

    With CAP_SYS_ADMIN no_new_privs stays as it is, so that set-id programs below work; without it the kernel
    insists.
    """
    machine = platform.machine()
    if machine not in _SYS_SECCOMP:
        raise _refused(f"this version knows no filter for {machine}")
    code = assemble(sync_calls.AUDIT_ARCHES[machine], io_uring=io_uring)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: u16 length, then a pointer on its own alignment.
    program = struct.pack("@HP", len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
    number = _SYS_SECCOMP[machine]
    flags = _FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE_RECV
    result = _try_install(number, flags, program)
    if result == -errno.EACCES:
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise _refused(os.strerror(ctypes.get_errno()))
        result = _try_install(number, flags, program)
    if result == -errno.EINVAL:
        result = _try_install(number, _FLAG_NEW_LISTENER, program)
    if result == -errno.EBUSY:
        raise _refused("another supervisor (a container runtime, or another diffkeeper-run) already listens")
    if result < 0:
        raise _refused(os.strerror(-result))
    return result


def _try_install(number: int, flags: int, program: bytes) -> int:
    result: int = libc.syscall(
        ctypes.c_long(number), ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(flags), ctypes.c_char_p(program)
    )
    return -ctypes.get_errno() if result < 0 else result


def _refused(why: str) -> errors.Misconfigured:
    return errors.Misconfigured(
        f"the gate cannot be installed: {why}; the program was not started",
        reason="no-gate",
        hint="dkctl doctor names what is missing; durability observe needs no gate",
    )


class Listener:
    """The end of the gate that receives. One receiver at a time; not closed by garbage collection."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        try:
            # The receiver is woken on the caller's processor: one stopped thread, one receiver, nothing to
            # spread.
            fcntl.ioctl(descriptor, _SET_FLAGS, _FD_SYNC_WAKE_UP)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise

    def fileno(self) -> int:
        return self._descriptor

    def receive(self) -> Stopped | None:
        """The next stopped call, or None when there is none now. Never blocks."""
        if not self._events() & select.POLLIN:
            return None
        buffer = bytearray(_NOTIF.size)
        try:
            fcntl.ioctl(self._descriptor, _NOTIF_RECV, buffer, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None  # killed or interrupted before it was received
            raise
        ident, pid, _flags, number, arch, _ip, *args = _NOTIF.unpack(buffer)
        return Stopped(ident, pid, sync_calls.name(arch, number), tuple(args))

    def let_go(self, ident: int) -> bool:
        """Answer CONTINUE; False when the call no longer waits (its thread was killed)."""
        try:
            fcntl.ioctl(self._descriptor, _NOTIF_SEND, _RESPONSE.pack(ident, 0, 0, _FLAG_CONTINUE))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):
                return False
            raise
        return True

    def still_waits(self, ident: int) -> bool:
        """Whether a call that somebody received waits for its answer."""
        try:
            fcntl.ioctl(self._descriptor, _NOTIF_ID_VALID, struct.pack("<Q", ident))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def is_abandoned(self) -> bool:
        """Whether no process is left under the filter."""
        return bool(self._events() & select.POLLHUP)

    def close(self) -> None:
        os.close(self._descriptor)

    def _events(self) -> int:
        ready = self._poll.poll(0)
        return ready[0][1] if ready else 0
