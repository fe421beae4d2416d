"""The observer against a real directory: whatever the calls, replaying its deltas gives what is on disk."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.forged_records import ForgedProgram
from tests.support.replays import Replay, snapshot
from tests.support.sinks import ListSink

from diffkeeper.domain import frames, limits, positions, trees
from diffkeeper.domain.deltas import Op
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.records import NO_VOLUME, Flag, Kind, Record


class Bench:
    """A volume, its observer, and a program that works in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sink = ListSink()
        self.observer = Observer(root, self.sink)
        self.program = ForgedProgram(root, self.observer.observe)

    def scan(self) -> None:
        for _ in self.observer.scan_base():
            pass
        self.settle()
        self.settle()
        self.sink.fidelity = frames.Fidelity.EXACT

    def settle(self) -> None:
        for _ in range(20):
            if self.observer.settle(time.monotonic_ns()):
                return
        raise AssertionError("the observer does not settle")

    def barrier(self) -> None:
        for _ in range(20):
            if self.observer.before_barrier(time.monotonic_ns()):
                return
        raise AssertionError("the observer does not get ready for a barrier")

    def replayed(self) -> Replay:
        return Replay().apply_all(self.sink.deltas)

    def check(self) -> Replay:
        """After a barrier the replay equals the disk."""
        self.barrier()
        replay = self.replayed()
        assert replay.snapshot(with_xattrs=True) == snapshot(self.root, with_xattrs=True)
        return replay

    def check_exact(self) -> Replay:
        replay = self.check()
        assert replay.gaps == []
        assert self.sink.fidelity is frames.Fidelity.EXACT
        return replay


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    root = tmp_path / "volume"
    root.mkdir()
    bench = Bench(root)
    bench.scan()
    yield bench
    bench.observer.close()


def test_creating_writing_and_truncating_is_exact(bench: Bench) -> None:
    program = bench.program
    fd = program.open("a")
    program.pwrite(fd, 0, b"hello world")
    program.pwrite(fd, 6, b"there")
    program.ftruncate(fd, 3)
    program.pwrite(fd, 100, b"far")
    program.fchmod(fd, 0o600)
    os.close(fd)
    os.close(program.open("a", os.O_RDWR | os.O_TRUNC))
    program.write("b", 0, b"x" * 5000)
    program.truncate("b", 17)
    program.chmod("b", 0o640)
    program.chown("b", 1000, 1001)
    bench.check_exact()


def test_names_are_followed_in_log_order(bench: Bench) -> None:
    program = bench.program
    program.mkdir("d")
    program.mkdir("d/e", 0o700)
    program.write("d/e/f", 0, b"one")
    program.rename("d/e", "g")
    program.write("g/f", 3, b"two")
    program.link("g/f", "h")
    program.symlink("g/f", "s")
    program.mkfifo("pipe")
    program.unlink("g/f")
    program.rmdir("g")
    program.write("h", 0, b"ONE")
    program.rename("h", "d/h")
    bench.check_exact()


def test_disk_far_ahead_of_the_log_still_gives_the_same_end(bench: Bench) -> None:
    program = bench.program
    program.is_holding = True
    program.mkdir("d")
    program.write("d/a", 0, b"first")
    program.rename("d", "e")
    program.mkdir("d")
    program.write("d/a", 0, b"second")
    program.write("e/b", 0, b"third")
    program.unlink("d/a")
    program.rmdir("d")
    program.rename("e", "f")
    program.release()
    bench.check()


def test_inode_number_used_again_gets_a_new_file_id(bench: Bench) -> None:
    program = bench.program
    program.write("a", 0, b"old")
    old = bench.observer.shadow.tree.child(1, b"a")
    program.unlink("a")
    program.write("a", 0, b"new")
    assert bench.observer.shadow.tree.child(1, b"a") != old
    bench.check_exact()


def test_created_inode_that_is_still_live_becomes_a_gap_and_is_right(bench: Bench) -> None:
    program = bench.program
    program.write("a", 0, b"old")
    os.unlink(bench.root / "a")  # nobody told
    program.write("b", 0, b"new")
    replay = bench.check()
    assert os.stat(bench.root / "b").st_ino  # the number is usually that of a
    assert {gap.args[0] for gap in replay.gaps} <= {"contradiction", "unknown-file"}


def test_unreadable_payload_is_read_from_the_file(bench: Bench) -> None:
    program = bench.program
    fd = program.open("a")
    program.pwrite(fd, 4096, b"z" * 9000, flags=Flag.UNREADABLE)
    os.close(fd)
    bench.check()
    assert bench.sink.fidelity is frames.Fidelity.PAGE


def test_unreadable_payload_of_a_file_that_moved_waits_for_its_rename(bench: Bench) -> None:
    program = bench.program
    program.write("a", 0, b"-" * 100)
    program.is_holding = True
    program.write("a", 0, b"z" * 100, flags=Flag.UNREADABLE)
    program.rename("a", "b")
    program.release()
    bench.check()


def test_writes_of_unlinked_files_are_dropped(bench: Bench) -> None:
    program = bench.program
    fd = program.open("a")
    program.unlink("a")
    before = len(bench.sink.deltas)
    program.pwrite(fd, 0, b"nobody will see this")
    os.close(fd)
    assert len(bench.sink.deltas) == before
    bench.check_exact()


def test_overlapped_disjoint_writes_stay_exact(bench: Bench) -> None:
    program = bench.program
    fd = program.open("a")
    program.is_holding = True
    program.pwrite(fd, 0, b"a" * 10)
    program.pwrite(fd, 10, b"b" * 10)
    (first, one), (second, two) = program.held
    program.held = [(first, one), (overlapped(second, first.start_ns), two)]
    program.release()
    os.close(fd)
    bench.check_exact()


def overlapped(record: Record, start_ns: int) -> Record:
    return record._replace(flags=record.flags | Flag.OVERLAPPED, start_ns=start_ns)


def test_overlapped_writes_to_the_same_bytes_are_read_again(bench: Bench) -> None:
    program = bench.program
    fd = program.open("a")
    program.is_holding = True
    program.pwrite(fd, 0, b"a" * 10)
    program.pwrite(fd, 5, b"b" * 10)
    (first, one), (second, two) = program.held
    # They returned in the other order.
    program.held = [(second, two), (overlapped(first, second.start_ns - 10), one)]
    program.release()
    os.close(fd)
    bench.check()
    assert bench.sink.fidelity is frames.Fidelity.PAGE


def test_write_larger_than_a_delta_is_cut(bench: Bench) -> None:
    bench.program.write("a", 3, os.urandom(limits.DELTA_MAX_DATA_BYTES * 2 + 5))
    bench.check_exact()


@pytest.mark.parametrize("mode", [3, 8, 16, 32])
def test_fallocate_in_all_its_modes(bench: Bench, mode: int) -> None:
    program = bench.program
    fd = program.open("a")
    program.pwrite(fd, 0, os.urandom(65536))
    program.fallocate(fd, mode, 8192, 16384)
    program.pwrite(fd, 10, b"after")
    os.close(fd)
    bench.check()


def test_file_that_appeared_unseen_is_found_and_told(bench: Bench) -> None:
    (bench.root / "new").write_bytes(b"unseen")
    with open(bench.root / "new", "r+b") as file:
        bench.program.pwrite(file.fileno(), 2, b"SEEN")
    replay = bench.check()
    assert [gap.args[0] for gap in replay.gaps] == ["unknown-file"]
    assert bench.sink.fidelity is frames.Fidelity.SCAN


def test_fidelity_is_exact_again_once_settled(bench: Bench) -> None:
    test_file_that_appeared_unseen_is_found_and_told(bench)
    bench.settle()
    assert bench.sink.floor is frames.Fidelity.EXACT


def test_extended_attributes_are_kept(bench: Bench) -> None:
    program = bench.program
    fd = program.open("a")
    program.fsetxattr(fd, "user.one", b"1")
    program.fsetxattr(fd, "user.two", b"2")
    program.fsetxattr(fd, "user.one", None)
    program.setxattr("a", "user.three", b"\0\1")
    os.close(fd)
    bench.check()


def test_times_are_kept(bench: Bench) -> None:
    program = bench.program
    program.write("a", 0, b"x")
    program.utime("a", 5_000_000_000, 7_000_000_007)
    replay = bench.check()
    assert list(replay.times.values()) == [(5_000_000_000, 7_000_000_007)]


def test_rename_out_and_in(bench: Bench, tmp_path: Path) -> None:
    program = bench.program
    program.mkdir("d")
    program.write("d/a", 0, b"stays with d")
    program.rename("d", "../outside")
    bench.check_exact()
    (tmp_path / "outside" / "b").write_bytes(b"made outside")
    program.rename("../outside", "back")
    replay = bench.check()
    assert replay.gaps == []


@pytest.mark.parametrize(
    "path",
    [
        "{root}/d/../d/./new",
        "{root}//d/new",
        "{above}/link/d/new",
        "d/../d/new",
        "../volume/d/new",
        "s/new",
        "abs/new",
    ],
)
def test_a_path_is_resolved_however_it_is_written(bench: Bench, tmp_path: Path, path: str) -> None:
    program = bench.program
    program.mkdir("d")
    (tmp_path / "link").symlink_to(bench.root)
    program.symlink("d", "s")
    program.symlink(str(bench.root / "d"), "abs")
    program.mkdir(path.format(root=bench.root, above=tmp_path))
    assert bench.observer.shadow.tree.walk(b"d/new") is not None
    bench.check_exact()


def test_paths_elsewhere_are_turned_away(bench: Bench, tmp_path: Path) -> None:
    program = bench.program
    before = len(bench.sink.deltas)
    program.mkdir("../elsewhere")
    program.mkdir(str(tmp_path / "elsewhere" / "more"))
    program.rename("../elsewhere/more", "../elsewhere/less")
    program.rmdir(str(tmp_path / "elsewhere" / "less"))
    assert len(bench.sink.deltas) == before
    bench.check_exact()


def test_barrier_is_told_with_its_call(bench: Bench) -> None:
    program = bench.program
    fd = program.open("a")
    program.fsync(fd)
    os.close(fd)
    assert [barrier.args for barrier in bench.check_exact().barriers] == [("fsync", os.getpid())]


def test_stores_into_a_mapping_are_found_at_the_barrier(bench: Bench) -> None:
    program = bench.program
    fd = program.open("shm")
    program.pwrite(fd, 0, bytes(32768))
    program.mapped(fd)
    with mmap.mmap(fd, 32768) as mapping:
        mapping[5000:5003] = b"one"
        bench.check()
        count = len(bench.sink.deltas)
        mapping[9000:9003] = b"two"
        replay = bench.check()
        added = bench.sink.deltas[count:]
        assert [(delta.op, delta.offset, delta.length) for delta in added] == [(Op.WRITE, 8192, 4096)]
        assert [gap.args[0] for gap in replay.gaps] == ["mmap"]
        program.unlink("shm")
        bench.check()
    os.close(fd)
    assert not bench.observer.mapped


def test_lost_records_of_one_file_are_made_good(bench: Bench) -> None:
    program = bench.program
    program.write("a", 0, b"x" * 1000)
    with open(bench.root / "a", "r+b") as file:
        file.write(b"not recorded")
    inode = os.stat(bench.root / "a").st_ino
    bench.observer.lose([inode], everywhere=False, detail="1 record")
    replay = bench.check()
    assert [gap.args[0] for gap in replay.gaps] == ["lost-records"]
    assert bench.sink.fidelity is frames.Fidelity.SCAN


def test_lost_records_of_nobody_knows_what_are_made_good(bench: Bench) -> None:
    program = bench.program
    for name in ("a", "b", "c"):
        program.write(name, 0, name.encode() * 3000)
    program.mkdir("d")
    (bench.root / "a").write_bytes(b"not recorded")
    (bench.root / "b").rename(bench.root / "d" / "b")
    (bench.root / "c").unlink()
    (bench.root / "d" / "new").write_bytes(b"new")
    moved = bench.observer.shadow.tree.child(1, b"b")
    bench.observer.lose([], everywhere=True, detail="7 records")
    replay = bench.check()
    assert replay.tree.walk(b"d/b") == moved, "a file that only moved keeps its id"


def test_unseen_writer_forces_a_comparison_at_every_barrier(bench: Bench) -> None:
    program = bench.program
    program.write("a", 0, b"x" * 100)
    program.tell(program.record(Kind.UNSEEN, volume=NO_VOLUME, extra=425))
    assert bench.observer.unseen_writers == {program.tgid}
    with open(bench.root / "a", "r+b") as file:
        file.write(b"by io_uring")
    replay = bench.check()
    assert [gap.args[0] for gap in replay.gaps] == ["unseen-writer"]
    with open(bench.root / "a", "r+b") as file:
        file.write(b"BY IO_URING")
    bench.check()


def test_unseen_call_of_a_stranger_matters_once_it_writes(bench: Bench) -> None:
    program = bench.program
    program.tgid = 99
    program.tell(program.record(Kind.UNSEEN, volume=NO_VOLUME, extra=425))
    assert bench.replayed().gaps == []
    program.write("a", 0, b"x")
    assert [gap.args[0] for gap in bench.replayed().gaps] == ["unseen-writer"]


def test_names_that_overlapped_are_checked_against_the_disk(bench: Bench) -> None:
    program = bench.program
    program.write("a", 0, b"old")
    program.is_holding = True
    program.unlink("a")
    program.write("a", 0, b"new")
    unlinked, created, *rest = program.held
    flagged = (unlinked[0]._replace(flags=unlinked[0].flags | Flag.OVERLAPPED_NAMES), unlinked[1])
    program.held = [created, flagged, *rest]  # they returned in the other order
    program.release()
    bench.check()


def test_root_that_disappears_is_a_fault_and_deletes_nothing(bench: Bench, tmp_path: Path) -> None:
    from diffkeeper.domain import errors

    bench.program.write("a", 0, b"x")
    bench.root.rename(tmp_path / "moved")
    bench.root.mkdir()
    bench.observer.lose([], everywhere=True, detail="test")
    before = len(bench.sink.deltas)
    with pytest.raises(errors.Misconfigured):
        bench.settle()
    assert len(bench.sink.deltas) == before


def test_state_is_taken_up_without_reading_anything(bench: Bench) -> None:
    program = bench.program
    program.mkdir("d")
    program.write("d/a", 0, b"kept")
    bench.barrier()
    state = bench.observer.state("v", positions.Position(1, 5), bytes(32), 7)
    sink = ListSink()
    observer = Observer(bench.root, sink, state=state)
    try:
        program._handle = observer.observe
        program.write("d/a", 4, b" and more")
        replay = bench.replayed().apply_all(sink.deltas)
        assert replay.snapshot() == snapshot(bench.root)
        assert [delta.op for delta in sink.deltas] == [Op.WRITE]
    finally:
        observer.close()


def test_content_is_never_logged_for_what_is_no_file(bench: Bench) -> None:
    """Names that moved unseen: a path that was cut, and an inode number that was written, were others' by then."""
    program = bench.program
    program.mkfifo("pipe")
    os.unlink(bench.root / "pipe")
    (bench.root / "pipe").write_bytes(b"a file by now")
    program.truncate("pipe", 6)
    fd = program.open("pipe", os.O_RDWR)
    program.pwrite(fd, 0, b"A")
    os.close(fd)
    replay = bench.check()
    tree = replay.tree
    assert {delta.file_id for delta in bench.sink.deltas if delta.op in (Op.WRITE, Op.TRUNCATE)} <= {
        file_id for file_id, node in tree.nodes.items() if node.kind is trees.Kind.FILE
    }
