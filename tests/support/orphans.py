"""Reaping what a killed parent leaves behind.

A program whose wrapper is killed with it becomes a child of process 1, which in a container may reap late or never.
Until then its number is taken: PostgreSQL started on a copy of the directory would see the process of its
``postmaster.pid`` alive, as it never would on another machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def adopted() -> Iterator[None]:
    """Within the block, orphans below this process become its children; at its end they are reaped."""
    _adopt(True)
    try:
        yield
    finally:
        _adopt(False)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def are_gone(pids: Iterable[int]) -> bool:
    """Whether these processes have ended and been reaped; reaps those that are ours."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _adopt(on: bool) -> None:
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
