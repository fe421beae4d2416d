"""From the journal into the directory: applies what is durable, in a thread of its own, and checkpoints from
time to time.

Frames come by memory when the journal has just kept them, and from the journal when this side is behind. A
Transient trouble (disk full) is tried again; any other stops the applying until the replica is rebuilt, while
the journal goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import structlog

from diffkeeper.contention import Contention
from diffkeeper.domain import deltas, errors, frames
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.cursor import VolumeFiles
from diffkeeper_replicator.directory import Directory
from diffkeeper_replicator.journal import Journal

_log = structlog.get_logger("replica")

CHECKPOINT_BYTES = 256 * 1024 * 1024
CHECKPOINT_S = 60.0
RETRY_S = 0.5
# Kept in memory for applying; beyond it frames are read back from the journal.
QUEUE_MAX_BYTES = 64 * 1024 * 1024
# Applied in one go, between which other calls get their turn.
RUN_MAX_BYTES = 8 * 1024 * 1024
_READ_BACK_FRAMES = 32
# While processors are short, runs of frames gather for up to so long: what was confirmed is in the journal, and a
# promotion does not wait for it.
GATHER_S = 0.02
GATHER_BYTES = 1024 * 1024
# What the log itself is to blame for: no rebuild helps, and nothing more of it is taken.
_BAD_LOG = frozenset({"tree-contradiction", "malformed-body", "unknown-operation"})

# A frame that the journal holds, with its checked deltas.
Kept = tuple[frames.Frame, deltas.Columns]


class Replayer:
    """One volume's, from the opening of its directory to its end."""

    def __init__(self, volume: str, files: VolumeFiles, journal: Callable[[], Journal]) -> None:
        self._files = files
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, f"apply-{volume}")
        self._queue: deque[Kept] = deque()
        self._queue_bytes = 0
        self._wake = asyncio.Event()
        self._checkpoint: asyncio.Task[None] | None = None
        self._checkpointed_at = 0.0
        self._contention = Contention()
        # Set while somebody waits for what is to be applied.
        self._awaited = asyncio.Event()
        self._waiters = 0
        self.directory: Directory | None = None
        self.trouble: errors.DiffKeeperError | None = None
        self.is_opening = False
        # Set once the directory is open, or could not be opened.
        self.opened = asyncio.Event()
        # Set whenever more is applied or trouble came.
        self.moved = asyncio.Event()
        # Of the run that is being applied.
        self._run_stamp = 0
        self.applied_bytes = 0

    @property
    def applied(self) -> frames.Tip:
        return self.directory.tip if self.directory is not None else frames.ORIGIN_TIP

    @property
    def pending_bytes(self) -> int:
        return self._queue_bytes

    @property
    def is_log_bad(self) -> bool:
        """The log contradicts itself: what it promises cannot be restored, so nothing more of it may be
        confirmed.
        """
        return self.trouble is not None and self.trouble.reason in _BAD_LOG

    @property
    def oldest_stamp(self) -> int:
        """When the first delta that waits to be applied was captured; 0 when that is not in memory."""
        return self._run_stamp or (self._queue[0][0].header.first if self._queue else 0)

    def deliver(self, kept: list[Kept]) -> None:
        """Frames that the journal holds now. Those that find no room are read back from there, and so are all behind
        them until the queue is empty: it has no holes. Nothing gathers where nothing is to be applied yet.
        """
        if self.directory is None and not self.is_opening:
            return
        applied = self.applied.position
        for frame, columns in kept:
            continues = not self._queue or self._queue[-1][0].position == frame.header.parent
            if frame.position > applied and continues and self._queue_bytes < QUEUE_MAX_BYTES:
                self._queue.append((frame, columns))
                self._queue_bytes += frame.header.body_bytes
        self._wake.set()

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """Something with the directory, between two runs of applying."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def open(self, begin: Callable[[], Directory]) -> None:
        """Open or begin the directory. Its failure is this side's trouble, not the caller's."""
        try:
            self.directory = await self.in_thread(begin)
            self.trouble = None
        except errors.DiffKeeperError as error:
            self.trouble = error
        self.opened.set()
        self._checkpointed_at = asyncio.get_running_loop().time()
        self._wake.set()

    def fail(self, error: errors.DiffKeeperError) -> None:
        """The directory cannot be opened at all."""
        self.trouble = error
        self.opened.set()

    async def run(self) -> None:
        """Apply for ever; ends by being cancelled, after which ``settle`` waits for the thread."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._is_behind():
                await self._gather()
                if not await self._run_once():
                    break
            await self._checkpoint_if_due()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Within it somebody waits for what is to be applied: nothing gathers."""
        self._waiters += 1
        self._awaited.set()
        try:
            yield
        finally:
            self._waiters -= 1
            if not self._waiters:
                self._awaited.clear()

    async def settle(self) -> None:
        """After ``run`` was cancelled: the directory is at rest."""
        await self.in_thread(lambda: None)
        if self._checkpoint is not None:
            await asyncio.wait([self._checkpoint])

    async def apply_all(self) -> None:
        """Everything the journal holds; raises the trouble that stops it."""
        while self._is_behind():
            if not await self._run_once() and self.trouble is not None:
                raise self.trouble

    async def close(self, *, clean: bool) -> None:
        directory, self.directory = self.directory, None
        if directory is not None:
            orderly = clean and (self.trouble is None or isinstance(self.trouble, errors.Transient))
            await self.in_thread(lambda: directory.close(clean=orderly))
        self._contention.close()
        self._thread.shutdown()

    # -- inside ----------------------------------------------------------------------------------------------

    def _is_behind(self) -> bool:
        if self.directory is None:
            return False
        stopped = self.trouble is not None and not isinstance(self.trouble, errors.Transient)
        return not stopped and self._journal().tip.position > self.applied.position

    async def _gather(self) -> None:
        """Let more frames come, where processors are short and this is not far behind."""
        if not self._queue or self._queue_bytes >= GATHER_BYTES or self._awaited.is_set():
            return
        pause_s = self._contention.pause_s(asyncio.get_running_loop().time(), GATHER_S)
        if pause_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._awaited.wait(), pause_s)

    async def _run_once(self) -> bool:
        """One run of frames; False when there was trouble."""
        run = self._take_run()
        self._run_stamp = run[0][0].header.first if run else 0
        try:
            await self.in_thread(lambda: self._apply(run))
        except errors.Transient as error:
            if self.trouble is None:
                _log.warning(error.message, reason=error.reason, hint=error.hint)
            self.trouble = error
            self.moved.set()
            await asyncio.sleep(RETRY_S)
            self._wake.set()
            return False
        except errors.DiffKeeperError as error:
            self.trouble = error
            _log.error(
                error.message, reason=error.reason, hint=error.hint, applied=str(self.applied.position)
            )
            self.moved.set()
            return False
        self._forget_applied()
        self.trouble = None
        self._run_stamp = 0
        self.moved.set()
        return True

    def _take_run(self) -> list[Kept]:
        """The next frames from memory when they continue what is applied; else the journal has them."""
        self._forget_applied()
        applied = self.applied.position
        if not self._queue or self._queue[0][0].header.parent != applied:
            return []
        run, size = [], 0
        while self._queue and size < RUN_MAX_BYTES:
            run.append(self._pop())
            size += run[-1][0].header.body_bytes
        return run

    def _forget_applied(self) -> None:
        applied = self.applied.position
        while self._queue and self._queue[0][0].position <= applied:
            self._pop()

    def _pop(self) -> Kept:
        kept = self._queue.popleft()
        self._queue_bytes -= kept[0].header.body_bytes
        return kept

    def _apply(self, run: list[Kept]) -> None:
        """In the thread."""
        directory = self.directory
        assert directory is not None, "only an open directory is behind"
        for frame, columns in directory.cover(run or self._read_back(directory)):
            directory.apply(frame, columns)
            self.applied_bytes += frame.header.body_bytes

    def _read_back(self, directory: Directory) -> list[Kept]:
        """The next frames as the journal has them."""
        run, size = [], 0
        for frame in islice(self._journal().frames_after(directory.tip.position), _READ_BACK_FRAMES):
            run.append((frame, frame.columns()))
            size += frame.header.body_bytes
            if size >= RUN_MAX_BYTES:
                break
        return run

    async def _checkpoint_if_due(self) -> None:
        directory, now = self.directory, asyncio.get_running_loop().time()
        if directory is None or (self._checkpoint is not None and not self._checkpoint.done()):
            return
        pending = directory.bytes_since_checkpoint
        if pending < CHECKPOINT_BYTES and (pending == 0 or now - self._checkpointed_at < CHECKPOINT_S):
            return
        self._checkpointed_at = now
        encoded = await self.in_thread(directory.encode_state)
        self._checkpoint = asyncio.create_task(self._write_checkpoint(directory, encoded), name="checkpoint")

    async def _write_checkpoint(self, directory: Directory, encoded: bytes) -> None:
        """Data before the state that counts on it. Later applying meanwhile does no harm."""

        def write() -> None:
            try:
                directory.sync()
                self._files.write_state(encoded)
            except OSError as error:
                raise safe_paths.disk_error(error, "writing a tree checkpoint") from error

        try:
            await asyncio.to_thread(write)
        except errors.Transient:
            return  # the one before still counts; the next is tried when it is due
        except errors.DiffKeeperError as error:
            self.trouble = error
            self.moved.set()
