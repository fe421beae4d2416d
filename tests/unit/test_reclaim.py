"""A directory that a fenced writer left is brought to a position of the log, and what it had beyond it is a branch."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.support.made_logs import FrameChain, MadeLog, columns
from tests.unit.test_undo import _everything, _replayed, _sealed

from diffkeeper.domain import errors, frames, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper_replicator import orphan_branches, reclaim, safe_paths, verify
from diffkeeper_replicator.applier import Applier
from diffkeeper_replicator.journal import Journal

NOTE = orphan_branches.Note(
    name="east-1",
    volume="orders",
    site="east",
    epoch=1,
    parent="1.1",
    parent_hash="",
    end="1.1",
    frames=0,
    why="forced failover",
    made_us=1,
    path="/data",
)


def _journal(folder: Path, log: Sequence[frames.Frame]) -> Journal:
    journal = Journal.open(folder / "journal")
    journal.append(log)
    return journal


def _go_on(root: Path, state: trees.TreeState, run: Sequence[Delta]) -> None:
    """What the program does beyond the parent."""
    root_fd = safe_paths.open_root(root)
    applier = Applier(root_fd, state.tree, state.identities)
    applier.apply(columns(run))
    applier.close()
    os.close(root_fd)


def _scribble(root: Path, rng: random.Random) -> None:
    """What nobody captured: the agent died first."""
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file() or rng.random() < 0.5:
            continue
        if rng.random() < 0.3:
            path.unlink()
            continue
        with path.open("r+b") as file:
            file.seek(rng.randrange(6000))
            file.write(rng.randbytes(rng.randrange(1, 3000)))
            if rng.random() < 0.3:
                file.truncate(rng.randrange(4000))
    (root / "new").write_bytes(rng.randbytes(5000))
    (root / "made").mkdir()
    (root / "made" / "inside").write_bytes(b"inside")


def _contents(root: Path) -> dict[bytes, tuple[int, bytes]]:
    found = {}
    for path in root.rglob("*"):
        raw = os.path.relpath(os.fsencode(path), os.fsencode(root))
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            found[raw] = (status.st_mode, path.read_bytes())
        else:
            found[raw] = (status.st_mode, os.readlink(os.fsencode(path)) if path.is_symlink() else b"")
    return found


def _taken(left: dict[int, trees.Identity]) -> reclaim.Left:
    return reclaim.Left(NOTE, [], left)


@given(st.lists(st.integers(0, 1 << 16), min_size=40, max_size=500), st.integers(0, 1 << 32), st.data())
@settings(max_examples=40, deadline=None, phases=[Phase.reuse, Phase.generate])
def test_a_left_directory_becomes_the_position_and_the_branch_has_all_it_held(
    steering: list[int], seed: int, data: st.DataObject
) -> None:
    run = list(MadeLog(steering).deltas())
    at = data.draw(st.integers(1, max(1, len(run))), "deltas up to the parent")
    told = data.draw(st.booleans(), "whether the agent's identities are known")
    log = _sealed(run[:at], 5)
    with tempfile.TemporaryDirectory() as under:
        folder = Path(under)
        root = folder / "data"
        root.mkdir()
        state = verify.replay("orders", log, root)
        _go_on(root, state, run[at:])
        _scribble(root, random.Random(seed))
        before = _contents(root)
        with_inodes = dict(state.identities.items()) if told else {}
        journal = _journal(folder, log)
        tip = frames.Tip(log[-1].position, log[-1].hash)

        taken = reclaim.reclaim(
            folder / "orphans", root, journal, tip, _taken(with_inodes), allow_setid=False
        )

        assert _everything(root) == _replayed(log, folder / "twin")
        assert taken.state.tree.nodes.keys() == taken.state.identities.keys()
        assert _overlaid(orphan_branches.find(folder / "orphans", "east-1"), folder / "twin") == before
        # It can be followed in: the next delta of every file lands in the right one.
        more = [write(i, 3, b"on") for i, n in taken.state.tree.nodes.items() if n.kind is trees.Kind.FILE]
        _go_on(root, taken.state, more)
        extra = FrameChain(tip=tip).frame(more)
        assert _everything(root) == _replayed([*log, extra], folder / "twin-on")


def _overlaid(branch: orphan_branches.Branch, parent: Path) -> dict[bytes, tuple[int, bytes]]:
    """The branch's changes over the parent's content: what the directory held."""
    old = _contents(parent)
    found = dict(old)
    changes = branch.changes()
    for change in changes:
        if change.kind == "removed":
            del found[change.path]
    for change in changes:
        if change.kind == "removed":
            continue
        _, content = old[change.before] if change.before is not None else (0, b"")
        if change.node == "file":
            body = bytearray(content[: change.size].ljust(change.size, b"\0"))
            for kept in change.ranges:
                body[kept.offset : kept.offset + kept.length] = branch.read(kept)
            content = bytes(body)
        elif change.node == "symlink":
            content = change.target
        kind = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO}
        found[change.path] = (kind[change.node] | change.mode, content)
    return found


def _left_behind(folder: Path) -> tuple[Path, Journal, frames.Tip, bytes]:
    """A directory of one file of 1 MB in which a kilobyte differs from the log."""
    rng = random.Random(5)
    chain = FrameChain()
    content = rng.randbytes(1 << 20)
    log = [
        chain.frame([Delta(Op.CREATE, 2, args=(ROOT_ID, b"data", 0o644, 0, 0))]),
        chain.frame([write(2, 0, content)]),
    ]
    root = folder / "data"
    root.mkdir()
    verify.replay("orders", log, root)
    with (root / "data").open("r+b") as file:
        file.seek(500_000)
        file.write(b"beyond" * 100)
    return root, _journal(folder, log), frames.Tip(log[-1].position, log[-1].hash), content


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    root, journal, tip, content = _left_behind(tmp_path)
    inode = (root / "data").stat().st_ino
    taken = reclaim.reclaim(tmp_path / "orphans", root, journal, tip, _taken({}), allow_setid=False)
    assert (root / "data").read_bytes() == content
    assert ((root / "data").stat().st_ino, taken.bytes) == (inode, 4096)


def test_a_crash_between_branch_and_directory_is_finished_by_the_same_plan(tmp_path: Path) -> None:
    root, journal, tip, content = _left_behind(tmp_path)
    orphans = tmp_path / "orphans"
    child = os.fork()
    if child == 0:
        os.pwrite = lambda *_: os._exit(9)
        reclaim.reclaim(orphans, root, journal, tip, _taken({}), allow_setid=False)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (root / "data").read_bytes() != content
    (branch,) = orphan_branches.find_all(orphans)
    reclaim.reclaim(orphans, root, journal, tip, _taken({}), allow_setid=False)
    assert (root / "data").read_bytes() == content
    (change,) = branch.changes()
    assert b"beyond" * 100 in b"".join(branch.read(kept) for kept in change.ranges)


def test_a_directory_that_a_process_still_writes_to_is_not_touched(tmp_path: Path) -> None:
    root, journal, tip, content = _left_behind(tmp_path)
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        fd = os.open(root / "data", os.O_RDWR)
        os.write(told, b"x")
        os.close(told)
        os.read(fd, 1)
        while True:
            signal.pause()
    try:
        os.read(ready, 1)
        with pytest.raises(errors.Transient) as busy:
            reclaim.reclaim(tmp_path / "orphans", root, journal, tip, _taken({}), allow_setid=False)
        assert (busy.value.reason, f"process {child}" in busy.value.message) == ("directory-busy", True)
        assert (root / "data").read_bytes() != content
        assert orphan_branches.find_all(tmp_path / "orphans") == []
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)


def test_a_journal_that_does_not_lead_to_the_parent_changes_nothing(tmp_path: Path) -> None:
    root, journal, tip, _ = _left_behind(tmp_path)
    before = (root / "data").read_bytes()
    other = frames.Tip(tip.position, bytes(32))
    with pytest.raises(errors.Corrupt) as refused:
        reclaim.reclaim(tmp_path / "orphans", root, journal, other, _taken({}), allow_setid=False)
    assert refused.value.reason == "not-in-journal"
    assert (root / "data").read_bytes() == before


def test_a_dropped_branch_is_gone_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    root, journal, tip, _ = _left_behind(tmp_path)
    orphans = tmp_path / "orphans"
    reclaim.reclaim(orphans, root, journal, tip, _taken({}), allow_setid=False)
    changes = orphans / "east-1" / "changes"
    good = changes.read_bytes()
    changes.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(errors.Corrupt) as damaged:
        orphan_branches.find(orphans, "east-1").changes()
    assert damaged.value.reason == "branch-damaged"
    orphan_branches.drop(orphans, "east-1")
    assert orphan_branches.find_all(orphans) == []
    with pytest.raises(errors.NotFound):
        orphan_branches.drop(orphans, "east-1")
    shutil.rmtree(tmp_path / "orphans")
