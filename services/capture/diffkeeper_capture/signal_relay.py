"""Signals on their way to the wrapped program, and its death on the way back. Only standard library here.

All are blocked and read from a signalfd, whose records say who sent them: what the terminal sends (Ctrl-C)
has reached the program already, because it shares the wrapper's process group, and must not arrive twice.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys

FORWARDED = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGTSTP,
        signal.SIGCONT,
    }
)
_SI_KERNEL = 0x80
_RECORD_BYTES = 128
_HEAD = struct.Struct("@Iii")  # signal number, errno, code
_SFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
# The kernel's sigset: one bit a signal, 64 of them.
_SIGSET = struct.Struct("@Q")


class SignalRelay:
    """Blocks the signals when made; ``mask_before`` is what the program must inherit."""

    def __init__(self) -> None:
        watched = FORWARDED | {signal.SIGCHLD}
        self.mask_before: set[signal.Signals] = {
            signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        }
        libc = ctypes.CDLL(None, use_errno=True)
        # glibc's sigset_t is 128 bytes and signalfd(3) reads the first eight.
        mask = ctypes.create_string_buffer(_SIGSET.pack(sum(1 << (number - 1) for number in watched)), 128)
        self._descriptor: int = libc.signalfd(-1, mask, _SFD_FLAGS)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "signalfd failed")
        self._has_terminal = any(os.isatty(number) for number in (0, 1, 2))

    def fileno(self) -> int:
        return self._descriptor

    def relay(self, child: int) -> int | None:
        """Pass on what came; the wait status of ``child`` when it has ended."""
        ended = None
        while (record := self._read()) is not None:
            number, _errno, code = _HEAD.unpack_from(record)
            if number == signal.SIGCHLD:
                status = self._wait(child)
                ended = status if status is not None else ended
            elif code != _SI_KERNEL and ended is None:
                # The child is not reaped before it has ended, so its pid is still its own.
                os.kill(child, number)
        return ended

    def _read(self) -> bytes | None:
        try:
            return os.read(self._descriptor, _RECORD_BYTES)
        except BlockingIOError:
            return None

    def _wait(self, child: int) -> int | None:
        while True:
            pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return None
            if not os.WIFSTOPPED(status):
                return status
            if self._has_terminal and os.WSTOPSIG(status) in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
                # The shell waits for its own child, us, to stop; only then is the job suspended for it.
                sys.stderr.flush()
                os.kill(os.getpid(), signal.SIGSTOP)
                os.kill(child, signal.SIGCONT)
