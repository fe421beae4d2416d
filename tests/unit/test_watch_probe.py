"""The portable probe on a real directory: what changed is in the log soon, and all of it before a barrier."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.replays import Replay, snapshot
from tests.support.sinks import ListSink

from diffkeeper.domain import errors, frames
from diffkeeper.domain.deltas import Op
from diffkeeper_capture import contents
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.watch_probe import WatchProbe


class Watched:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.sink = ListSink()
        self.observer = Observer(root, self.sink, sole_source=True)
        self.probe = WatchProbe(root)

    def scan(self) -> None:
        for _ in self.probe.scan_base(self.observer):
            pass

    def barrier(self) -> None:
        for _ in self.probe.barrier(self.observer):
            pass

    def collect(self) -> None:
        for _ in self.probe.collect(self.observer):
            pass

    def is_equal(self) -> bool:
        replay = Replay().apply_all(self.sink.deltas)
        return replay.snapshot(with_xattrs=True) == snapshot(self.root, with_xattrs=True)

    def new_deltas(self, since: int) -> list[Op]:
        return [delta.op for delta in self.sink.deltas[since:]]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    root = tmp_path / "volume"
    root.mkdir()
    (root / "d").mkdir()
    (root / "d" / "a").write_bytes(b"a" * 200_000)
    (root / "log").write_bytes(b"line\n")
    watched = Watched(root)
    with watched.probe:
        watched.scan()
        yield watched
    watched.observer.close()


def let_time_stamps_age() -> None:
    time.sleep(contents.RACY_NS / 1e9 + 0.01)


async def test_a_change_is_collected_within_three_tenths_of_a_second(watched: Watched) -> None:
    (watched.root / "log").write_bytes(b"line\nmore\n")
    begun = time.monotonic()
    async with asyncio.timeout(5):
        while not watched.is_equal():
            await watched.probe.changed_paths()
            watched.collect()
    assert time.monotonic() - begun < 0.3


async def test_changes_of_every_kind_are_collected(watched: Watched) -> None:
    root = watched.root
    (root / "new").mkdir()
    (root / "new" / "deep").mkdir()
    (root / "new" / "deep" / "file").write_bytes(b"x" * 10)
    (root / "d" / "a").rename(root / "moved")
    (root / "log").unlink()
    (root / "link").symlink_to("moved")
    os.setxattr(root / "moved", "user.k", b"v")
    os.chmod(root, 0o711)
    async with asyncio.timeout(5):
        while not watched.is_equal():
            await watched.probe.changed_paths()
            watched.collect()


def test_barrier_finds_what_no_notification_told(watched: Watched) -> None:
    (watched.root / "d" / "a").write_bytes(b"changed")
    (watched.root / b"odd \xff name".decode("utf-8", "surrogateescape")).write_bytes(b"odd")
    watched.barrier()
    assert watched.is_equal()


def test_same_size_change_within_a_clock_tick_is_found(watched: Watched) -> None:
    for number in range(20):
        (watched.root / "log").write_bytes(b"%5d" % number)
        watched.barrier()
        assert watched.is_equal()


def test_only_changed_blocks_are_logged(watched: Watched) -> None:
    with open(watched.root / "d" / "a", "r+b") as file:
        file.seek(70_000)
        file.write(b"changed")
    before = len(watched.sink.deltas)
    watched.barrier()
    assert watched.is_equal()
    page = 70_000 // 4096 * 4096
    assert [(delta.op, delta.offset, delta.length) for delta in watched.sink.deltas[before:]] == [
        (Op.WRITE, page, 2 * 4096 if page + 4096 < 70_007 else 4096),
        (Op.ATTR, 0, 0),
    ]


def test_nothing_changed_logs_nothing(watched: Watched) -> None:
    let_time_stamps_age()
    watched.barrier()
    before = len(watched.sink.deltas)
    watched.barrier()
    watched.barrier()
    assert len(watched.sink.deltas) == before


def test_rename_moves_no_data(watched: Watched) -> None:
    (watched.root / "d" / "a").rename(watched.root / "moved")
    before = len(watched.sink.deltas)
    watched.barrier()
    assert watched.is_equal()
    assert watched.new_deltas(before) == [Op.RENAME]


def test_rotated_logs_and_exchanged_names_keep_their_ids(watched: Watched) -> None:
    root = watched.root
    for number in range(3):
        (root / f"log.{number}").write_bytes(b"%d" % number * 100_000)
    watched.barrier()
    tree = watched.observer.shadow.tree
    ids = [tree.walk(b"log.%d" % number) for number in range(3)]
    for number in (2, 1, 0):
        (root / f"log.{number}").rename(root / f"log.{number + 1}")
    (root / "log.0").write_bytes(b"fresh")
    before = len(watched.sink.deltas)
    watched.barrier()
    assert watched.is_equal()
    assert [tree.walk(b"log.%d" % (number + 1)) for number in range(3)] == ids
    assert watched.new_deltas(before).count(Op.WRITE) == 1


def test_growing_and_shrinking_and_holes(watched: Watched) -> None:
    path = watched.root / "sparse"
    with open(path, "wb") as file:
        file.truncate(5_000_000)
        file.seek(1_000_000)
        file.write(b"island")
    watched.barrier()
    assert watched.is_equal()
    assert sum(delta.length for delta in watched.sink.deltas if delta.op is Op.WRITE) < 500_000
    for size in (1_000_003, 10, 70_000, 0, 65_536):
        os.truncate(path, size)
        watched.barrier()
        assert watched.is_equal()


def test_fidelity_is_never_better_than_scan(watched: Watched) -> None:
    assert watched.observer.settle(time.monotonic_ns())
    assert watched.sink.floor is frames.Fidelity.SCAN


def test_directory_replaced_by_a_file_and_back(watched: Watched) -> None:
    path = watched.root / "d"
    (path / "a").unlink()
    path.rmdir()
    path.write_bytes(b"now a file")
    watched.barrier()
    assert watched.is_equal()
    path.unlink()
    path.mkdir()
    (path / "b").write_bytes(b"b")
    watched.barrier()
    assert watched.is_equal()


def test_root_that_disappears_is_a_fault_and_deletes_nothing(watched: Watched, tmp_path: Path) -> None:
    watched.root.rename(tmp_path / "away")
    before = len(watched.sink.deltas)
    with pytest.raises(errors.Misconfigured):
        watched.barrier()
    assert len(watched.sink.deltas) == before


async def test_closing_ends_a_wait(watched: Watched) -> None:
    waiting = asyncio.create_task(watched.probe.changed_paths())
    await asyncio.sleep(0)
    watched.probe.close()
    async with asyncio.timeout(2):
        await waiting
