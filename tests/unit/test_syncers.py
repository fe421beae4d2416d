"""Both ways to make files durable beside the loop: by a thread of Python, and by one without."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffkeeper_capture import syncers

HAS_NATIVE = platform.machine() in ("x86_64", "aarch64")
KINDS: list[Callable[[], syncers.Syncer | None]] = [
    syncers.ExecutorSyncer,
    *([syncers.NativeSyncer.open] if HAS_NATIVE else []),
]


@pytest.fixture(params=KINDS, ids=["executor", "native"][: len(KINDS)])
def syncer(request: pytest.FixtureRequest) -> Iterator[syncers.Syncer]:
    made = request.param()
    assert made is not None, "it was compiled for this machine: python build_bpf.py"
    yield made
    made.close()


async def answer_of(syncer: syncers.Syncer, files: list[int], directory: int | None = None) -> OSError | None:
    told: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    syncer.begin(files, directory, told.set_result)
    return await asyncio.wait_for(told, 60)


async def test_files_and_a_directory_are_synced_one_ask_after_the_other(
    syncer: syncers.Syncer, tmp_path: Path
) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    files = [os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT) for number in range(5)]
    for round_ in range(20):
        for file in files:
            os.write(file, b"x" * 100)
        assert await answer_of(syncer, files, directory if round_ % 2 else None) is None
    for descriptor in (*files, directory):
        os.close(descriptor)


async def test_the_first_failure_is_told_with_its_number_and_the_next_ask_is_served(
    syncer: syncers.Syncer, tmp_path: Path
) -> None:
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    no_file, other_end = os.pipe()
    failure = await answer_of(syncer, [file, no_file])
    assert failure is not None and failure.errno == errno.EINVAL
    failure = await answer_of(syncer, [file], no_file)
    assert failure is not None and failure.errno == errno.EINVAL
    assert await answer_of(syncer, [file]) is None
    for descriptor in (file, no_file, other_end):
        os.close(descriptor)


async def test_nobody_is_told_after_it_was_closed(syncer: syncers.Syncer, tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    told: list[OSError | None] = []
    syncer.begin([file], None, told.append)
    syncer.close()
    await asyncio.get_running_loop().run_in_executor(None, os.fdatasync, file)
    await asyncio.sleep(0)
    assert told == []
    os.close(file)


def test_one_syncer_serves_the_loops_that_follow_each_other(syncer: syncers.Syncer, tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    for _ in range(3):
        assert asyncio.run(answer_of(syncer, [file])) is None
    os.close(file)


def until_threads_are(count: int) -> None:
    deadline = time.monotonic() + 60
    while threads() != count:
        assert time.monotonic() < deadline, f"{threads()} threads of syncers, not {count}"
        time.sleep(0.01)


def threads() -> int:
    names = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            names.append((thread / "comm").read_text().strip())
    return names.count("dk-sync")


@pytest.mark.skipif(not HAS_NATIVE, reason="no compiled syncer for this machine")
def test_the_thread_ends_with_its_syncer() -> None:
    until_threads_are(0)  # those of other tests
    made = [syncers.NativeSyncer.open() for _ in range(3)]
    until_threads_are(3)
    for one in made:
        assert one is not None
        one.close()
    until_threads_are(0)
