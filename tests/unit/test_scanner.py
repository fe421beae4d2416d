"""The first sight, and the comparison after it: everything a volume keeps is logged, and nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.forged_records import ForgedProgram
from tests.support.replays import Replay, snapshot
from tests.support.sinks import ListSink

from diffkeeper.domain import errors, positions
from diffkeeper.domain.deltas import Op
from diffkeeper_capture.contents import RACY_NS
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.rereader import CHUNK_BYTES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    root.mkdir()
    return root


@pytest.fixture
def sink() -> ListSink:
    return ListSink()


@pytest.fixture
def observer(root: Path, sink: ListSink) -> Iterator[Observer]:
    observer = Observer(root, sink)
    yield observer
    observer.close()


def run(steps: Iterator[object]) -> int:
    return sum(1 for _ in steps)


def assert_equal(sink: ListSink, root: Path) -> Replay:
    replay = Replay().apply_all(sink.deltas)
    assert replay.snapshot(with_xattrs=True) == snapshot(root, with_xattrs=True)
    return replay


def test_the_first_sight_has_everything(root: Path, sink: ListSink, observer: Observer) -> None:
    deep = root.joinpath(*["d"] * 40)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(os.urandom(CHUNK_BYTES * 2 + 17))
    (root / "empty").touch()
    (root / ("n" * 255)).write_bytes(b"long name")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\n\\ odd")).write_bytes(b"odd name")
    os.link(deep / "f", root / "hard")
    (root / "sym").symlink_to("nowhere/at all")
    os.mkfifo(root / "pipe", 0o620)
    os.chmod(deep / "f", 0o4750)
    os.chown(root / "empty", 12, 34)
    os.setxattr(root / "empty", "user.k", b"v\0")
    os.setxattr(deep, "user.on-dir", b"")
    os.chmod(root, 0o700)
    progress = list(observer.scan_base())
    replay = assert_equal(sink, root)
    assert replay.gaps == []
    assert progress[-1].done
    assert progress[-1].files == progress[-1].files_total == len(snapshot(root)) - 1
    contents = [delta for delta in sink.deltas if delta.op is Op.WRITE]
    assert max(delta.length for delta in contents) <= CHUNK_BYTES
    assert sum(delta.length for delta in contents) < CHUNK_BYTES * 3, "a hard link's bytes are logged once"


def test_holes_stay_holes(root: Path, sink: ListSink, observer: Observer) -> None:
    with open(root / "sparse", "wb") as file:
        file.seek(8 << 20)
        file.write(b"island")
        file.truncate(64 << 20)
    with open(root / "hole", "wb") as file:
        file.truncate(5)
    run(observer.scan_base())
    assert_equal(sink, root)
    assert sum(delta.length for delta in sink.deltas if delta.op is Op.WRITE) <= 8192


def test_sockets_are_told_once_and_left_out(root: Path, sink: ListSink, observer: Observer) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "sock"))
        run(observer.scan_base())
        run(observer.rescan())
    assert [gap.args for gap in assert_equal(sink, root).gaps] == [("special-file", "sock")]


def test_steps_are_bounded(root: Path, sink: ListSink, observer: Observer) -> None:
    for number in range(1500):
        (root / f"{number}").touch()
    (root / "big").write_bytes(bytes(20 * CHUNK_BYTES))
    most = before = 0
    for _ in observer.scan_base():
        most = max(most, len(sink.deltas) - before)
        before = len(sink.deltas)
    assert most <= 600, "an entry and its times each"


def test_a_missing_root_is_the_operators_to_mend(tmp_path: Path, sink: ListSink) -> None:
    with pytest.raises(errors.Misconfigured):
        Observer(tmp_path / "missing", sink)
    (tmp_path / "file").touch()
    with pytest.raises(errors.Misconfigured):
        Observer(tmp_path / "file", sink)


def test_root_replaced_during_a_scan_deletes_nothing(root: Path, sink: ListSink, observer: Observer) -> None:
    (root / "a").write_bytes(b"a")
    run(observer.scan_base())
    root.rename(root.parent / "away")
    root.mkdir()
    before = len(sink.deltas)
    with pytest.raises(errors.Misconfigured):
        run(observer.rescan())
    assert len(sink.deltas) == before


def test_what_vanishes_during_the_scan_is_no_matter(root: Path, sink: ListSink, observer: Observer) -> None:
    for number in range(600):
        (root / f"{number:03}").write_bytes(b"x")
    for directory in ("p", "q"):
        (root / directory).mkdir()
        (root / directory / "f").write_bytes(b"x")
    steps = observer.scan_base()
    for number, _ in enumerate(steps):
        if number == 3:
            (root / "599").unlink()
            (root / "q" / "f").unlink()
            (root / "q").rmdir()
    run(observer.rescan())
    assert_equal(sink, root)


@settings(max_examples=int(os.environ.get("DK_SCAN_EXAMPLES", "25")))
@given(seed=st.integers(0, 1 << 32))
def test_a_scan_amid_a_working_program_ends_right(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Steps of the scan and calls of the program take turns; records arrive late, in order."""
    choose = random.Random(seed)
    root = tmp_path_factory.mktemp("volume")
    for directory in ("a", "b", "c"):
        (root / directory).mkdir()
        for name in "xyz":
            (root / directory / name).write_bytes(os.urandom(choose.choice([0, 10, CHUNK_BYTES + 5])))
    sink = ListSink()
    observer = Observer(root, sink)
    program = ForgedProgram(root, observer.observe)
    program.is_holding = True
    try:
        for _ in observer.scan_base():
            for _ in range(choose.randrange(3)):
                work(program, choose)
            if choose.random() < 0.5:
                program.release()
        program.release()
        for _ in range(20):
            if observer.before_barrier(time.monotonic_ns()):
                break
        replay = Replay().apply_all(sink.deltas)
        assert replay.snapshot() == snapshot(root)
    finally:
        observer.close()


def work(program: ForgedProgram, choose: random.Random) -> None:
    def path() -> str:
        name = choose.choice("xyzabc")
        return name if choose.random() < 0.3 else f"{choose.choice('abc')}/{name}"

    calls = [
        lambda: program.write(path(), choose.randrange(300_000), os.urandom(choose.randrange(1, 500))),
        lambda: program.write(path(), choose.randrange(300_000), os.urandom(choose.randrange(1, 500))),
        lambda: program.truncate(path(), choose.randrange(300_000)),
        lambda: program.unlink(path()),
        lambda: program.rename(path(), path()),
        lambda: program.rename(path(), path(), 2),
        lambda: program.mkdir(path()),
        lambda: program.rmdir(path()),
        lambda: program.link(path(), path()),
    ]
    try:
        choose.choice(calls)()
    except OSError:
        return  # refused by the file system: nothing happened, nothing is told


def test_attaching_again_reads_only_what_changed(root: Path, sink: ListSink, observer: Observer) -> None:
    (root / "d").mkdir()
    (root / "d" / "same").write_bytes(b"s" * 10_000)
    (root / "changed").write_bytes(b"c" * 10_000)
    (root / "gone").write_bytes(b"g")
    (root / "moved").write_bytes(b"m" * 10_000)
    run(observer.scan_base())
    time.sleep(RACY_NS / 1e9 + 0.01)
    state = observer.state("v", positions.Position(1, 1), bytes(32), 1)
    (root / "changed").write_bytes(b"C" * 10_000)
    (root / "gone").unlink()
    (root / "moved").rename(root / "d" / "moved")
    (root / "new").write_bytes(b"n")
    later = ListSink()
    again = Observer(root, later, state=state)
    try:
        run(again.rescan("re-attached"))
    finally:
        again.close()
    replay = Replay().apply_all(sink.deltas + later.deltas)
    assert replay.snapshot() == snapshot(root)
    written = {replay.tree.path(delta.file_id) for delta in later.deltas if delta.op is Op.WRITE}
    assert b"d/same" not in written
    assert {b"changed", b"new"} <= written
    assert later.deltas[0].args[0] == "re-attached"


def test_many_changes_at_once_are_all_found(root: Path) -> None:
    """The slow twin of a comparison is to throw everything away and read it again."""
    choose = random.Random(20)
    sink = ListSink()
    observer = Observer(root, sink, sole_source=True)
    program = ForgedProgram(root, lambda record, payload: None)
    try:
        run(observer.scan_base())
        for _ in range(60):
            for _ in range(choose.randrange(1, 12)):
                work(program, choose)
                if choose.random() < 0.2:
                    with contextlib.suppress(FileExistsError):
                        (root / choose.choice("abc")).mkdir()
            run(observer.rescan())
            assert_equal(sink, root)
        assert not any(b"diffkeeper" in path for path in observer.shadow.tree.nodes[1].children)
    finally:
        observer.close()
