"""Who may pass a door, and when: holding, waiting for the program, counting what is under way.

A request passes once the door is open and the program behind it accepts connections. Until then it waits: one
prober asks the program for all of them. Those that waited are let go few at a time at first, for the program
has just started and its queue of connections may be short.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from diffkeeper.domain import errors

# The program is asked this often whether it accepts, at first and after a while.
PROBE_S = 0.002
PROBE_SLOWLY_S = 0.05
PROBE_FAST_FOR_S = 3.0
# How many may ask a program that has just begun before it has answered one; each answer lets one more in.
FIRST_WINDOW = 4
WINDOW_TICK_S = 0.004
FULL_WINDOW = 128


@dataclass(frozen=True, slots=True)
class Target:
    site: str
    host: str
    port: int


@dataclass(slots=True)
class Counters:
    requests: int = 0
    held: int = 0
    refused: int = 0
    resent: int = 0
    lost: int = 0
    # Waits of the last hold, and how long the longest of them was.
    longest_hold_ms: float = 0.0


# Raises OSError when nobody accepts there.
Probe = Callable[[Target], Awaitable[None]]


class Passage:
    def __init__(self, hold_max: int, hold_ms: int, probe: Probe) -> None:
        self.counters = Counters()
        self.hold_max, self.hold_ms = hold_max, hold_ms
        self.target: Target | None = None
        self.is_open = False
        self.since = time.monotonic()
        self.waiting = 0
        self.in_flight = 0
        # Rises when what was connected before must not be used any more.
        self.generation = 0
        self._accepting = False
        self._probe = probe
        self._prober: asyncio.Task[None] | None = None
        self._passable = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._window = FULL_WINDOW
        self._unanswered = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._lapse: asyncio.TimerHandle | None = None

    @property
    def accepting(self) -> bool:
        return self._accepting

    def open(self, target: Target) -> None:
        """Let through to ``target`` as soon as it accepts. Open to it already: nothing changes."""
        if self.is_open and target == self.target:
            return
        self._cancel_lapse()
        self.target, self.is_open, self.since = target, True, time.monotonic()
        self.counters.longest_hold_ms = 0.0
        self.lost_target()

    def hold(self, lapse_ms: int) -> None:
        """Let nobody through; after ``lapse_ms`` without another word the door opens to where it led before."""
        self._cancel_lapse()
        if self.is_open:
            self.is_open, self.since = False, time.monotonic()
            self.generation += 1
        self._passable.clear()
        self._lapse = asyncio.get_running_loop().call_later(lapse_ms / 1000, self._lapsed)

    def _lapsed(self) -> None:
        self._lapse = None
        if self.target is not None:
            self.open(self.target)

    def _cancel_lapse(self) -> None:
        if self._lapse is not None:
            self._lapse.cancel()
            self._lapse = None

    def lost_target(self) -> None:
        """The program did not accept a connection, or is another from now on: wait until it does."""
        self.generation += 1
        self._accepting = False
        self._passable.clear()
        if self._prober is not None:
            self._prober.cancel()
        self._prober = asyncio.create_task(self._probe_until_accepted(), name="probe the program")

    async def _probe_until_accepted(self) -> None:
        began = time.monotonic()
        target = self.target
        assert target is not None, "a door that was opened leads somewhere"
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                await self._probe(target)
                break
            is_slow = time.monotonic() - began > PROBE_FAST_FOR_S
            await asyncio.sleep(PROBE_SLOWLY_S if is_slow else PROBE_S)
        self._accepting = True
        self._window = FIRST_WINDOW
        if self.is_open:
            self._passable.set()

    async def enter(self) -> tuple[Target, int]:
        """Wait for the right to connect; the target and the generation it was given in. ``answered`` must
        follow, once. Raises Refused when too many wait, and TimedOut.
        """
        if not self._passable.is_set():
            await self._wait()
        if self._is_full():
            await self._queue_up()
        else:
            self._unanswered += 1
        assert self.target is not None, "an open door leads somewhere"
        return self.target, self.generation

    def _is_full(self) -> bool:
        return self._window < FULL_WINDOW and self._unanswered >= self._window

    async def _wait(self) -> None:
        counters = self.counters
        if self.waiting >= self.hold_max:
            counters.refused += 1
            raise errors.Refused(
                f"{self.waiting} requests wait already while the program is moved or started",
                reason="hold-full",
                hint="try again",
            )
        self.waiting += 1
        counters.held += 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.hold_ms / 1000):
                # It may be held again before this task has run.
                while not self._passable.is_set():
                    await self._passable.wait()
        except TimeoutError as error:
            counters.refused += 1
            why = "does not accept connections" if self.is_open else "is being moved to another site"
            raise errors.TimedOut(
                f"the program {why}, and the request has waited {self.hold_ms} ms",
                reason="hold-too-long",
                hint="try again; dkctl status says what it waits for",
            ) from error
        finally:
            self.waiting -= 1
            waited_ms = (time.monotonic() - began) * 1000
            counters.longest_hold_ms = max(counters.longest_hold_ms, waited_ms)

    def is_current(self, generation: int) -> bool:
        return generation == self.generation and self._passable.is_set()

    def begin(self) -> None:
        """A connection to the program is about to be used for a request."""
        self.in_flight += 1
        self._idle.clear()

    def answered(self) -> None:
        """The program has begun to answer, or never will; once for each ``enter``."""
        self._unanswered -= 1
        if self._window < FULL_WINDOW:
            self._window += 1
        self._admit()

    def end(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until nothing is under way; whether that came about."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self.in_flight == 0

    async def close(self) -> None:
        self._cancel_lapse()
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)

    async def _queue_up(self) -> None:
        """Wait for the window; it also widens with time, so a program slow to answer stops nobody for long."""
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        asyncio.get_running_loop().call_later(WINDOW_TICK_S * len(self._queue), self._widen)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.answered()  # its turn had come
            raise

    def _widen(self) -> None:
        self._window += 1
        self._admit()

    def _admit(self) -> None:
        while self._queue and not self._is_full():
            turn = self._queue.popleft()
            if not turn.done():
                self._unanswered += 1
                turn.set_result(None)
