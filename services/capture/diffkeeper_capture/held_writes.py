"""Processes that the probe stopped after a write that is durable by flag: each goes on when its receipt is there.

Stopping is the kernel side's part (``bpf/dk_hold.h``), which also notes who was stopped in a map that outlives this
process, so that a successor finds those whose records were taken already. A process is let go on only when no thread
of it can be in the middle of another such write: SIGCONT takes back a stop that has not happened yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import signal
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from diffkeeper_capture.gate import Gate

CALL = "synchronous write"
# A thread that is on its way out of a call gets there in microseconds, or after its disk has answered.
_POLL_FIRST_S, _POLL_MOST_S = 0.0005, 0.05

# Instead of a slot: stopped for want of room in the ring, not for a receipt.
PRESSED = 0xFFFFFFFE

_log = structlog.get_logger("gate")


class Held(Protocol):
    """The kernel side's note of who is stopped."""

    def held(self) -> dict[int, int]:
        """Processes, and the slots of the volumes they wrote to."""

    def hold_again(self, tgid: int, slot: int) -> None: ...

    def forget_held(self, tgid: int) -> None: ...


class Pressed(Held, Protocol):
    @property
    def presses(self) -> int:
        """How often a process was stopped for want of room."""


class HeldWrites:
    """A gate's ``Source``. ``catch_up`` delivers all records that are in the ring, which may name more of them."""

    def __init__(self, slot: int, gate: Gate, kernel: Held, catch_up: Callable[[], object]) -> None:
        self._slot = slot
        self._gate = gate
        self._kernel = kernel
        self._catch_up = catch_up
        self._idents = itertools.count(1)
        self._tgid_of: dict[int, int] = {}
        self._releases: set[asyncio.Task[None]] = set()

    def arrive(self, tgid: int) -> None:
        """A process was stopped."""
        ident = next(self._idents)
        self._tgid_of[ident] = tgid
        self._gate.arrive(self, ident, tgid, CALL)

    def look(self) -> None:
        """Those whose records were lost, or taken by a predecessor."""
        for tgid, slot in self._kernel.held().items():
            if slot == self._slot and not self._awaits(tgid):
                self.arrive(tgid)

    def let_go(self, idents: Sequence[int]) -> None:
        for tgid in {self._tgid_of.pop(ident) for ident in idents if ident in self._tgid_of}:
            if not self._awaits(tgid):
                release = asyncio.create_task(self._release(tgid), name=f"let {tgid} go on")
                self._releases.add(release)
                release.add_done_callback(self._releases.discard)

    def close(self) -> None:
        """Leave them stopped, for a successor."""
        for release in self._releases:
            release.cancel()

    def _awaits(self, tgid: int) -> bool:
        return tgid in self._tgid_of.values() or any(
            task.get_name() == f"let {tgid} go on" for task in self._releases
        )

    async def _release(self, tgid: int) -> None:
        await _until_all_stopped(tgid, self._gate.waiting_threads)
        self._catch_up()
        if tgid in self._tgid_of.values():
            return  # another thread of it came to its end: the process waits for that receipt too
        with contextlib.suppress(ProcessLookupError):
            os.kill(tgid, signal.SIGCONT)
        self._kernel.forget_held(tgid)
        if _is_stopped(tgid):
            # It went on and was stopped again before the note of the first time was gone.
            self._kernel.hold_again(tgid, self._slot)


class PressedPrograms:
    """Programs that the kernel side stopped because the ring was half full, on their way back."""

    def __init__(self, kernel: Pressed, ring_bytes: int, waiting: Callable[[], set[int]]) -> None:
        """``waiting``: threads whose calls wait at a gate."""
        self.total = 0
        self._kernel = kernel
        self._room_from = ring_bytes // 4
        self._waiting = waiting
        # A predecessor may have left some.
        self._seen = -1
        self._releases: dict[int, asyncio.Task[None]] = {}

    def look(self, held_bytes: int) -> None:
        """Often: let them go on once three quarters of the ring are free."""
        if self._kernel.presses == self._seen or held_bytes > self._room_from:
            return
        self._seen = self._kernel.presses
        for tgid, why in self._kernel.held().items():
            if why == PRESSED and tgid not in self._releases:
                self.total += 1
                release = asyncio.create_task(self._release(tgid), name=f"let {tgid} go on")
                self._releases[tgid] = release
                release.add_done_callback(functools.partial(self._forget, tgid))

    def close(self) -> None:
        for release in self._releases.values():
            release.cancel()

    def _forget(self, tgid: int, _release: asyncio.Task[None]) -> None:
        del self._releases[tgid]

    async def _release(self, tgid: int) -> None:
        await _until_all_stopped(tgid, self._waiting)
        if self._kernel.held().get(tgid) != PRESSED:
            return  # a thread of it came to the end of a synchronous write: it waits for that receipt
        with contextlib.suppress(ProcessLookupError):
            os.kill(tgid, signal.SIGCONT)
        self._kernel.forget_held(tgid)
        if _is_stopped(tgid):
            # It went on and was stopped again before the note of the first time was gone.
            self._kernel.hold_again(tgid, PRESSED)
            self._seen = -1


async def _until_all_stopped(tgid: int, waiting: Callable[[], set[int]]) -> None:
    pause_s = _POLL_FIRST_S
    while _may_be_writing(tgid, waiting()):
        await asyncio.sleep(pause_s)
        pause_s = min(_POLL_MOST_S, 2 * pause_s)


def _may_be_writing(tgid: int, waiting: set[int]) -> bool:
    """Whether a thread of a stopped process has yet to come to its stop, other than in calls that wait at the gate."""
    return any(state not in "TtZX" and tid not in waiting for tid, state in _threads(tgid))


def _is_stopped(tgid: int) -> bool:
    return any(state in "Tt" for _, state in _threads(tgid))


def _threads(tgid: int) -> list[tuple[int, str]]:
    found = []
    try:
        for tid in os.listdir(f"/proc/{tgid}/task"):
            with open(f"/proc/{tgid}/task/{tid}/stat", "rb") as file:
                found.append((int(tid), file.read().rpartition(b")")[2].split()[0].decode()))
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found
