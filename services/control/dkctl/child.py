"""A child in the foreground as if it had been started without us: its signals, exit code, terminal.

The child shares our process group, so the terminal's own signals (Ctrl-C, Ctrl-\\, hang-up) reach it
directly; those that somebody sent to us alone are passed on. Signals are taken one by one with
``sigwaitinfo``, so none falls between two instructions.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping, Sequence

from diffkeeper.domain import errors

PASSED_ON = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGCONT,
        signal.SIGWINCH,
    }
)
# siginfo.si_code of a signal that the terminal driver sent (include/uapi/asm-generic/siginfo.h).
SI_KERNEL = 0x80
# Python ignores these two for itself; a child must not inherit that.
_PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)


def run(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Start ``argv`` and wait for its end: its exit code, or ``-N`` when signal N ended it. Raises
    NotFound.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON | {signal.SIGCHLD})
    try:
        try:
            pid = os.posix_spawnp(argv[0], list(argv), env, setsigmask=mask, setsigdef=_PYTHON_IGNORES)
        except OSError as error:
            raise errors.NotFound(
                f"{argv[0]} could not be started: {error.strerror}",
                reason="wrapper-missing",
                hint="is the diffkeeper package installed whole?",
            ) from error
        return _wait(pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _wait(pid: int) -> int:
    while True:
        heard = signal.sigwaitinfo(PASSED_ON | {signal.SIGCHLD})
        if heard.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
        elif heard.si_code != SI_KERNEL:
            # The child is not yet waited for, so its pid cannot be anybody else's.
            os.kill(pid, heard.si_signo)


def end_like(returncode: int) -> int:
    """Our own exit code after a child's end. When a signal ended the child, the same signal ends us, here."""
    if returncode >= 0:
        return returncode
    number = -returncode
    # One core dump of the program is enough.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    # A signal whose default is to be ignored cannot have ended the child, but a real-time kernel may
    # know better.
    return 128 + number
