"""Going back is the inverse of applying: for bytes, names, modes, links, extended attributes and holes."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.support.made_logs import FrameChain, MadeLog

from diffkeeper.domain import errors, frames, positions
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper_replicator import directory, verify
from diffkeeper_replicator.cursor import VolumeFiles
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.undo_log import Bounds, UndoLog


def _sealed(run: Sequence[Delta], size: int) -> list[frames.Frame]:
    chain = FrameChain()
    return [chain.frame(run[first : first + size]) for first in range(0, len(run), size)]


class Rig:
    """A replica's directory and its journal, without a log behind them."""

    def __init__(self, under: Path, bounds: Bounds | None = None) -> None:
        self.files = VolumeFiles(under / "replicator", bounds)
        self.path = under / "replica"
        self.journal = Journal.open(self.files.journal)
        self.directory = self.open()

    def open(self) -> directory.Directory:
        return directory.open_or_begin(self.files, "orders", self.path, self.journal)

    def apply(self, *run: frames.Frame) -> None:
        """As the replayer does: the journal first, then what the run takes away, then the run."""
        self.journal.append(run)
        waiting = [(frame, frame.columns()) for frame in run]
        while waiting:
            covered = self.directory.cover(waiting)
            for frame, columns in covered:
                self.directory.apply(frame, columns)
            waiting = waiting[len(covered) :]

    def apply_in_runs(self, log: Sequence[frames.Frame], rng: random.Random) -> None:
        rest = list(log)
        while rest:
            count = rng.randint(1, 4)
            self.apply(*rest[:count])
            rest = rest[count:]

    def end(self, *, clean: bool = True) -> None:
        self.directory.close(clean=clean)


def _everything(root: Path) -> dict[str, object]:
    """The digest, and what it leaves out: extended attributes, and where files have data."""
    seen: dict[str, object] = dict(verify.digest(root).items())
    for path in list(seen):
        whole = os.fsencode(root / path)
        if not os.path.islink(whole):
            seen[f"{path} xattrs"] = sorted((name, os.getxattr(whole, name)) for name in os.listxattr(whole))
    return seen


def _replayed(log: Sequence[frames.Frame], folder: Path) -> dict[str, object]:
    """The slow twin: the log up to there, into an empty directory."""
    folder.mkdir()
    verify.replay("orders", log, folder)
    return _everything(folder)


@given(st.lists(st.integers(0, 1 << 16), min_size=20, max_size=400), st.integers(0, 1 << 32), st.data())
@settings(max_examples=60, deadline=None)
def test_going_back_gives_what_a_replay_up_to_there_gives(
    steering: list[int], seed: int, data: st.DataObject
) -> None:
    log = _sealed(list(MadeLog(steering).deltas()), 5)
    back_to = data.draw(st.integers(0, len(log)), "frames that stay")
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        rig.apply_in_runs(log, random.Random(seed))
        target = log[back_to - 1].position if back_to else positions.START
        rig.directory.rewind(target, rig.journal)
        assert rig.directory.tip.position == target
        assert _everything(rig.path) == _replayed(log[:back_to], Path(folder) / "twin")
        state = rig.directory._state
        model = verify.empty_state("orders", Path(folder) / "twin").tree
        for frame in log[:back_to]:
            for delta in frame.columns():
                if delta.op is not Op.ATTR or delta.file_id in model.nodes:
                    model.apply(delta)
        assert (state.tree.nodes, state.tree.next_id) == (model.nodes, model.next_id)
        # Forward again, and back again: nothing was left behind that would be in the way.
        rig.journal.cut_after(target)
        rig.apply(*log[back_to:])
        assert _everything(rig.path) == _replayed(log, Path(folder) / "all")
        rig.directory.rewind(positions.START, rig.journal)
        assert list(rig.path.iterdir()) == []
        rig.end()


@given(st.lists(st.integers(0, 1 << 16), min_size=40, max_size=400), st.integers(0, 1 << 32), st.data())
@settings(
    max_examples=30, deadline=None, phases=[Phase.reuse, Phase.generate]
)  # each example forks and syncs: slow to shrink
def test_after_a_crash_anywhere_in_a_run_the_directory_goes_on_and_still_goes_back(
    steering: list[int], seed: int, data: st.DataObject
) -> None:
    rng = random.Random(seed)
    log = _sealed(list(MadeLog(steering).deltas()), 5)
    before = data.draw(st.integers(0, max(0, len(log) - 1)), "frames before the run that is cut off")
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        rig.apply_in_runs(log[:before], rng)
        if rng.random() < 0.5:
            rig.directory.sync()
            rig.files.write_state(rig.directory.encode_state())  # a checkpoint on the way
        rig.journal.append(log[before:])
        _apply_and_die(rig, log[before:], rng.randint(0, 40))
        rig.end(clean=False)
        rig.directory = rig.open()
        waiting = [(f, f.columns()) for f in rig.journal.frames_after(rig.directory.tip.position)]
        for frame, columns in waiting and rig.directory.cover(waiting):
            rig.directory.apply(frame, columns)
        assert _everything(rig.path) == _replayed(log, Path(folder) / "all")
        back_to = data.draw(st.integers(0, len(log)), "frames that stay")
        rig.directory.rewind(log[back_to - 1].position if back_to else positions.START, rig.journal)
        assert _everything(rig.path) == _replayed(log[:back_to], Path(folder) / "twin")
        rig.end()


def _apply_and_die(rig: Rig, run: Sequence[frames.Frame], calls: int) -> None:
    """In a child that is gone after so many system calls that change something."""
    child = os.fork()
    if child == 0:
        left = calls

        def dying(name: str) -> None:
            real = getattr(os, name)

            def call(*args: object, **kwargs: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return real(*args, **kwargs)

            setattr(os, name, call)

        for name in (
            "rename",
            "link",
            "unlink",
            "rmdir",
            "mkdir",
            "pwrite",
            "pwritev",
            "ftruncate",
            "fchmod",
        ):
            dying(name)
        covered = rig.directory.cover([(frame, frame.columns()) for frame in run])
        for frame, columns in covered:
            rig.directory.apply(frame, columns)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)


def _filled(rig: Rig, count: int) -> list[frames.Frame]:
    chain = FrameChain()
    log = [chain.frame([Delta(Op.CREATE, 2, args=(ROOT_ID, b"data", 0o644, 0, 0)), write(2, 0, b"0" * 9000)])]
    rng = random.Random(7)
    log += [chain.frame([write(2, rng.randrange(8000), rng.randbytes(500))]) for _ in range(count)]
    for frame in log:
        rig.apply(frame)
    return log


def test_what_is_kept_stays_within_its_bounds_and_going_further_back_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Bounds(size_bytes=40_000))
    log = _filled(rig, 200)
    undone = rig.directory.undo
    assert undone.log.size_bytes <= 40_000
    floor = undone.floor
    assert floor is not None and log[0].position < floor < log[-1].position
    content = (rig.path / "data").read_bytes()
    with pytest.raises(errors.Refused, match="reaches back to") as refused:
        rig.directory.rewind(log[0].position, rig.journal)
    assert refused.value.reason == "undo-out-of-reach"
    assert (rig.path / "data").read_bytes() == content
    rig.directory.rewind(floor, rig.journal)
    kept = [frame for frame in log if frame.position <= floor]
    assert _everything(rig.path) == _replayed(kept, tmp_path / "twin")
    rig.end()


def test_undo_is_bounded_in_frames_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Bounds(frames=40))
    log = _filled(rig, 200)
    floor = rig.directory.undo.floor
    assert floor is not None and 20 <= log[-1].position.sequence - floor.sequence <= 50
    rig.end()


def test_removed_files_count_and_are_let_go_when_they_are_out_of_reach(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Bounds(size_bytes=100_000))
    chain = FrameChain()
    for number in range(2, 40):
        name = b"file-%d" % number
        rig.apply(
            chain.frame(
                [Delta(Op.CREATE, number, args=(ROOT_ID, name, 0o644, 0, 0)), write(number, 0, b"x" * 20_000)]
            )
        )
        rig.apply(chain.frame([Delta(Op.UNLINK, number, args=(ROOT_ID, name))]))
        graves = tmp_path / ".replica.undo"
        # What the last run removes is counted with the next one.
        kept = sum(grave.stat().st_blocks * 512 for grave in graves.iterdir())
        assert kept <= 100_000 + 6 * 4096
    rig.end()


def test_nothing_is_kept_when_undo_is_off(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Bounds(size_bytes=0))
    log = _filled(rig, 5)
    assert rig.directory.undo.floor is None
    with pytest.raises(errors.Refused, match="holds nothing"):
        rig.directory.rewind(log[2].position, rig.journal)
    rig.end()


def test_a_damaged_record_is_found_before_the_directory_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    log = _filled(rig, 20)
    (segment,) = (tmp_path / "replicator" / "undo").glob("*.undo")
    wire = bytearray(segment.read_bytes())
    wire[len(wire) // 2] ^= 0x10
    segment.write_bytes(wire)
    with pytest.raises(errors.Corrupt) as damaged:
        rig.directory.rewind(log[0].position, rig.journal)
    assert damaged.value.reason == "undo-damaged"
    rig.end(clean=False)
    with pytest.raises(errors.Corrupt) as broken:
        rig.open()
    assert broken.value.reason == "rewind-broken"


def test_a_torn_record_at_the_end_is_cut_and_the_chain_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    log = _filled(rig, 20)
    rig.end()
    (segment,) = (tmp_path / "replicator" / "undo").glob("*.undo")
    os.truncate(segment, segment.stat().st_size - 5)
    found = UndoLog.open(tmp_path / "replicator" / "undo", Bounds())
    assert found.tip == frames.Tip(log[-2].position, log[-2].hash)
    found.close()


def test_a_sparse_file_is_sparse_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    chain = FrameChain()
    create = Delta(Op.CREATE, 2, args=(ROOT_ID, b"sparse", 0o644, 0, 0))
    rig.apply(chain.frame([create, write(2, 0, b"head"), Delta(Op.TRUNCATE, 2, 64 << 20)]))
    blocks = (rig.path / "sparse").stat().st_blocks
    before = chain.tip.position
    rng = random.Random(3)
    for _ in range(30):
        rig.apply(chain.frame([write(2, rng.randrange(60 << 20), rng.randbytes(10_000))]))
    rig.apply(chain.frame([Delta(Op.TRUNCATE, 2, 0)]))
    rig.directory.rewind(before, rig.journal)
    found = (rig.path / "sparse").stat()
    assert (found.st_size, found.st_blocks) == (64 << 20, blocks)
    rig.end()


@pytest.mark.parametrize(
    ("durable", "removes", "kept"), [(False, False, False), (True, False, True), (True, True, False)]
)
def test_after_a_power_cut_undo_begins_anew_unless_all_of_it_was_synced(
    tmp_path: Path, durable: bool, removes: bool, kept: bool
) -> None:
    rig = Rig(tmp_path, Bounds(durable=durable))
    log = _filled(rig, 3)
    chain = FrameChain(tip=frames.Tip(log[-1].position, log[-1].hash))
    if removes:
        rig.apply(chain.frame([Delta(Op.UNLINK, 2, args=(ROOT_ID, b"data"))]))
    rig.end(clean=False)
    noted = tmp_path / "replicator" / "undo" / "boot"
    noted.write_text("another-boot " + noted.read_text().partition(" ")[2])
    rig.directory = rig.open()
    assert rig.directory.tip.position == chain.tip.position
    assert rig.directory.undo.floor == (positions.START if kept else chain.tip.position)
    assert os.listdir(rig.path) == ([] if removes else ["data"])
    rig.end()


def test_a_long_run_goes_back_whatever_lies_between_what_it_overwrites(tmp_path: Path) -> None:
    """Large, small, neighbouring and distant ranges, over data, zeros and holes: read and packed in many pieces."""
    rig = Rig(tmp_path)
    rng = random.Random(11)
    chain = FrameChain()
    create = Delta(Op.CREATE, 2, args=(ROOT_ID, b"data", 0o644, 0, 0))
    wide = b"".join(rng.choice((rng.randbytes(4096), bytes(4096))) for _ in range(256))
    rig.apply(
        chain.frame([create, write(2, 0, wide), write(2, 3 << 20, wide), Delta(Op.TRUNCATE, 2, 9 << 20)]),
        chain.frame([write(2, 8 << 20, wide[:900_000])]),
    )
    before, target = _everything(rig.path), chain.tip.position
    run = [write(2, rng.randrange(9 << 20), rng.randbytes(rng.choice((1, 200, 4096)))) for _ in range(2000)]
    run += [write(2, offset, rng.randbytes(1 << 20)) for offset in (100, 5_000_000, (9 << 20) - 7)]
    rng.shuffle(run)
    rig.apply(*(chain.frame(run[first : first + 500]) for first in range(0, len(run), 500)))
    assert _everything(rig.path) == _replayed(list(rig.journal.frames_from(1)), tmp_path / "twin")
    rig.directory.rewind(target, rig.journal)
    assert _everything(rig.path) == before
    rig.end()


def test_records_of_another_format_are_let_go_and_the_chain_begins_anew(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    log = _filled(rig, 20)
    rig.end()
    (segment,) = (tmp_path / "replicator" / "undo").glob("*.undo")
    segment.write_bytes(segment.read_bytes().replace(b"DKU2", b"DKU1"))
    rig.directory = rig.open()
    assert rig.directory.undo.floor == log[-1].position
    rig.apply(FrameChain(tip=rig.directory.tip).frame([write(2, 5, b"more")]))
    rig.directory.rewind(log[-1].position, rig.journal)
    assert _everything(rig.path) == _replayed(log, tmp_path / "twin")
    rig.end()
