"""One child process kept alive: started, adopted, watched, started again with growing pauses, stopped.

What the child is comes from outside as ``launch`` (start it, return once it works) and ``works`` (does a
process we adopt answer?). The pause before each new start doubles up to a bound and falls back once the child
has lived for a while; a status shows all of it. Nothing is started again once ``stop`` or ``kill`` was asked.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from diffkeeper.domain import errors
from diffkeeper_control import processes
from diffkeeper_control.deployment import Process

FIRST_PAUSE_MS = 200
LONGEST_PAUSE_MS = 10_000
# A child that lived this long had a good start, so its end begins the pauses anew.
GOOD_LIFE_S = 30.0
_LAST_WORDS_BYTES = 2048

_log = structlog.get_logger("supervisor")


class ChildState(enum.Enum):
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"  # ended or failed to start; will be started again
    STOPPED = "stopped"  # on purpose


def pause_ms(failures: int) -> int:
    """How long to wait before the start after so many failures in a row (at least one)."""
    assert failures >= 1, "the first start is not waited for"
    doublings = min(failures - 1, 16)
    return int(min(FIRST_PAUSE_MS * 2**doublings, LONGEST_PAUSE_MS))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a child is started and recognised."""

    name: str
    site: str
    address: str
    log: str
    # Starts the process and returns at once; ``works`` is asked until it says yes or the process ends.
    launch: Callable[[], Awaitable[processes.ProcessId]]
    works: Callable[[], Awaitable[bool]]
    start_timeout_s: float
    stop_grace_s: float


class Child:
    """One supervised process. ``on_change`` is called after each change of process or state."""

    def __init__(self, recipe: Recipe, on_change: Callable[[], None]) -> None:
        self.recipe = recipe
        self.state = ChildState.STOPPED
        self.process: Process | None = None
        self.restarts = 0
        self.last_exit: int | None = None
        self.trouble = ""
        self._failures = 0
        self._retry_at: float | None = None
        self._on_change = on_change
        self._keeper: asyncio.Task[None] | None = None

    @property
    def identity(self) -> processes.ProcessId | None:
        if self.process is None:
            return None
        return processes.ProcessId(self.process.pid, self.process.start_ticks)

    @property
    def failures(self) -> int:
        """How often in a row it ended, or could not be started, since it last lived for a while."""
        return self._failures

    def is_running(self) -> bool:
        identity = self.identity
        return identity is not None and processes.is_running(identity)

    @property
    def is_idle(self) -> bool:
        """Nobody keeps it alive: it was never started, or was stopped."""
        return self._keeper is None

    async def adopt(self, noted: Process) -> bool:
        """Take over a process an earlier control left; False when it is gone or does not answer (then it is
        ended).
        """
        identity = processes.ProcessId(noted.pid, noted.start_ticks)
        if not processes.is_running(identity):
            return False
        if not await self._answers(identity):
            _log.warning("an adopted process does not answer; ending it", **self._label(), pid=noted.pid)
            await processes.kill(identity)
            return False
        self.process = noted
        self._become(ChildState.RUNNING)
        self._keep()
        return True

    async def start(self, *, patient: bool = False) -> None:
        """Start and keep alive. When the first start fails it raises and leaves nothing behind, or, if
        ``patient``, goes on trying.
        """
        assert self._keeper is None, "a child is started once, then kept"
        try:
            await self._launch()
        except (errors.DiffKeeperError, OSError) as error:
            if not patient:
                raise
            self._could_not_start(error)
        self._keep()

    async def stop(self) -> None:
        """Ask it to end, wait within its grace, kill it. Idempotent."""
        await self._let_go()
        identity = self.identity
        if identity is not None and not await processes.stop(identity, self.recipe.stop_grace_s):
            _log.warning("killed, for it did not stop in time", **self._label(), pid=identity.pid)
        self.process = None
        self._become(ChildState.STOPPED)

    async def forget(self) -> None:
        """Stop keeping it alive; whoever calls this kills the process."""
        await self._let_go()
        self._become(ChildState.STOPPED)

    async def release(self) -> None:
        """Stop watching; process and state stay as they are, for the next control."""
        await self._let_go()

    def forget_process(self) -> None:
        """After its end, which nobody awaited any more: take its exit status, so that its number is free."""
        if self.process is not None:
            self.last_exit = processes.reap(self.process.pid)
        self.process = None
        self._on_change()

    def status(self) -> dict[str, Any]:
        retry_in_ms = None
        if self._retry_at is not None:
            retry_in_ms = max(0, int((self._retry_at - time.monotonic()) * 1000))
        return {
            "name": self.recipe.name,
            "pid": self.process.pid if self.process is not None else None,
            "state": self.state.value,
            "address": self.recipe.address,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
            "retry_in_ms": retry_in_ms,
            "started_us": self.process.started_us if self.process is not None else None,
            "log": self.recipe.log,
            "trouble": self.trouble,
        }

    async def _launch(self) -> None:
        self._become(ChildState.STARTING)
        try:
            identity = await self.recipe.launch()
            self.process = Process(identity.pid, identity.start_ticks, time.time_ns() // 1000)
            self._on_change()
            if not await self._answers(identity):
                raise errors.Unreachable(
                    f"the {self.recipe.name} of site {self.recipe.site} did not answer within "
                    f"{self.recipe.start_timeout_s:g} s of its start, or ended; "
                    f"its log ends with: {_last_words(Path(self.recipe.log))}",
                    reason="child-not-healthy",
                    hint=f"read {self.recipe.log}",
                )
        except BaseException:
            identity_now = self.identity
            if identity_now is not None:
                await processes.kill(identity_now)
                self.last_exit = processes.reap(identity_now.pid)
            self.process = None
            self._become(ChildState.STOPPED)
            raise
        self.trouble = ""
        self._become(ChildState.RUNNING)

    async def _answers(self, identity: processes.ProcessId) -> bool:
        """Ask until it works, it has ended, or the time is over."""
        pause_s = 0.01
        try:
            async with asyncio.timeout(self.recipe.start_timeout_s):
                while processes.is_running(identity):
                    if await self.recipe.works():
                        return True
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, 0.1)
        except TimeoutError:
            return False
        return False

    def _keep(self) -> None:
        self._keeper = asyncio.create_task(
            self._keep_alive(), name=f"keep {self.recipe.site} {self.recipe.name}"
        )

    async def _keep_alive(self) -> None:
        while True:
            identity = self.identity
            if identity is not None:
                born = time.monotonic()
                self.last_exit = await processes.wait_for_end(identity)
                if time.monotonic() - born > GOOD_LIFE_S:
                    self._failures = 0
                self.process = None
                self.trouble = f"ended with {self.last_exit}" if self.last_exit is not None else "ended"
                _log.warning("a child ended", **self._label(), pid=identity.pid, exit=self.last_exit)
            await self._start_again()

    async def _start_again(self) -> None:
        self._failures += 1
        pause = pause_ms(self._failures) / 1000
        self._retry_at = time.monotonic() + pause
        self._become(ChildState.BACKOFF)
        await asyncio.sleep(pause)
        self._retry_at = None
        self.restarts += 1
        try:
            await self._launch()
        except (errors.DiffKeeperError, OSError) as error:
            self._could_not_start(error)

    def _could_not_start(self, error: Exception) -> None:
        self.trouble = str(error)
        self._become(ChildState.BACKOFF)
        _log.warning("a child could not be started", **self._label(), error=str(error))

    async def _let_go(self) -> None:
        keeper, self._keeper = self._keeper, None
        self._retry_at = None
        self._failures = 0
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    def _become(self, state: ChildState) -> None:
        self.state = state
        self._on_change()

    def _label(self) -> dict[str, str]:
        return {"site": self.recipe.site, "child": self.recipe.name}


def _last_words(log: Path) -> str:
    """The last line of a log, so that the reason stands beside the failure."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST_WORDS_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"(it cannot be read: {error.strerror})"
    return lines[-1] if lines else "(it is empty)"
