"""Whether processors are short: how long a thread waits for one, against how long it runs.

Work that serves nobody at once is put together while they are short, since it is done more cheaply in larger parts,
and what it costs is taken from the programs that it serves.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

# Over how long the share is taken.
WINDOW_S = 0.2
# From this share of waiting on a pause is made, and it is the longest from the other on.
CALM_SHARE, SHORT_SHARE = 0.3, 0.6


class Contention:
    """Of the thread that makes it. Where the kernel does not count waiting (no CONFIG_SCHED_INFO) nothing is ever short."""

    def __init__(self) -> None:
        self._fd = -1
        with suppress(FileNotFoundError):
            path = f"/proc/self/task/{threading.get_native_id()}/schedstat"
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._taken_at = 0.0
        self._ran_ns = self._waited_ns = 0
        self.share = 0.0

    def pause_s(self, now: float, most_s: float) -> float:
        """How long to let work gather: nothing while processors are free, ``most_s`` while they are short. ``now`` is
        in seconds, of one clock that never goes back.
        """
        if self._fd >= 0 and now - self._taken_at >= WINDOW_S:
            ran, waited = map(int, os.pread(self._fd, 128, 0).split()[:2])
            self.share = share_of_waiting(ran - self._ran_ns, waited - self._waited_ns)
            self._taken_at, self._ran_ns, self._waited_ns = now, ran, waited
        return most_s * scaled(self.share)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def share_of_waiting(ran_ns: int, waited_ns: int) -> float:
    """Of the time that a thread wanted a processor; 0 where it wanted none."""
    wanted_ns = ran_ns + waited_ns
    return waited_ns / wanted_ns if wanted_ns > 0 else 0.0


def scaled(share: float) -> float:
    """0 up to the calm share, 1 from the short one on, even between them."""
    return min(1.0, max(0.0, (share - CALM_SHARE) / (SHORT_SHARE - CALM_SHARE)))
