"""Who makes a spool's files durable beside the event loop: a thread without Python where one can be had.

An fsync in a thread of Python takes the interpreter's lock three times, and on a busy machine each time is a wait for
whoever has it, in the loop as in the thread (in one trace of barriers it began 1.9 ms after it was asked for, and was
heard of 2.2 ms after its end, medians; what the other thread saves by itself was not measured apart). The
compiled one (``native/syncer.c``) is asked and answers through pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import platform
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from diffkeeper_capture import write_lanes

# Of syncer.c; a spool has two or three, one for each segment begun since the sync before.
ASKED_MAX = 1000
_ANSWER = struct.Struct("=i")

# Called with None or why it failed, once, in the event loop.
Ended = Callable[[OSError | None], None]


class Syncer(Protocol):
    """For one spool: asked again only when it has answered."""

    def begin(self, files: Sequence[int], directory: int | None, ended: Ended) -> None:
        """Make files and a directory durable. The descriptors stay the caller's, and open until ``ended``."""

    def close(self) -> None:
        """Take no more; what was begun comes to its end, and nobody is told."""


class ExecutorSyncer:
    """By the threads of Python."""

    def __init__(self) -> None:
        self._is_closed = False

    def begin(self, files: Sequence[int], directory: int | None, ended: Ended) -> None:
        def tell(done: asyncio.Future[None]) -> None:
            if done.cancelled():
                return
            failure = done.exception()
            if self._is_closed:
                return
            assert failure is None or isinstance(failure, OSError), (
                f"an fsync fails so or not at all: {failure!r}"
            )
            ended(failure)

        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, _sync_all, list(files), directory).add_done_callback(tell)

    def close(self) -> None:
        self._is_closed = True


def _sync_all(files: list[int], directory: int | None) -> None:
    for descriptor in files:
        os.fdatasync(descriptor)
    if directory is not None:
        os.fsync(directory)


class NativeSyncer:
    """By a thread of its own, which ends when this is closed."""

    def __init__(self, asks: int, answers: int) -> None:
        """Ends of two pipes, of which the thread has the others."""
        self._asks, self._answers = asks, answers
        self._ended: Ended | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def open(cls) -> NativeSyncer | None:
        """None where there is no compiled one for this machine, or no thread to be had."""
        loaded = _library()
        if loaded is None:
            return None
        asked, asks = os.pipe2(os.O_CLOEXEC)
        answers, answered = os.pipe2(os.O_CLOEXEC)
        if loaded.dk_serve_syncs(asked, answered):
            for descriptor in (asked, asks, answers, answered):
                os.close(descriptor)
            return None
        return cls(asks, answers)

    def begin(self, files: Sequence[int], directory: int | None, ended: Ended) -> None:
        assert self._ended is None, "one at a time"
        assert len(files) < ASKED_MAX, "a spool begins few segments between two syncs"
        asked = [*files] if directory is None else [*files, ~directory]
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            loop.add_reader(self._answers, self._on_answer)
        self._ended = ended
        os.write(self._asks, struct.pack(f"={len(asked)}i", *asked))

    def _on_answer(self) -> None:
        (failure,) = _ANSWER.unpack(os.read(self._answers, _ANSWER.size))
        ended, self._ended = self._ended, None
        assert ended is not None, "it answers when it was asked"
        ended(OSError(failure, os.strerror(failure)) if failure else None)

    def close(self) -> None:
        if self._asks < 0:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._answers)
        os.close(self._asks)
        os.close(self._answers)
        self._asks = self._answers = -1
        self._ended = None


def best() -> Syncer:
    return NativeSyncer.open() or ExecutorSyncer()


@functools.cache
def _library() -> ctypes.CDLL | None:
    path = write_lanes.FOLDER / f"syncer.{platform.machine()}.so"
    with contextlib.suppress(OSError):  # none, or one for another C library than this
        found = ctypes.CDLL(str(path))
        found.dk_serve_syncs.argtypes = (ctypes.c_int32, ctypes.c_int32)
        found.dk_serve_syncs.restype = ctypes.c_int32
        return found
    return None
