"""After a crash at any delta, reconcile equals a replay of the whole log into an empty directory."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.made_logs import FrameChain, MadeLog, columns

from diffkeeper.domain import errors, frames, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper_replicator import safe_paths, verify
from diffkeeper_replicator.applier import Applier
from diffkeeper_replicator.reconcile import reconcile


def _sealed(run: Sequence[Delta], size: int) -> list[frames.Frame]:
    chain = FrameChain()
    return [chain.frame(run[first : first + size]) for first in range(0, len(run), size)]


def _copy(state: trees.TreeState) -> trees.TreeState:
    """As a checkpoint on disk would be."""
    return trees.decode(trees.encode(state))


def _apply_part(root: Path, state: trees.TreeState, run: Sequence[Delta]) -> None:
    """What a process does before it is killed: some deltas, then all it knew is gone."""
    root_fd = safe_paths.open_root(root)
    applier = Applier(root_fd, state.tree, state.identities)
    applier.apply(columns(run))
    applier.close()
    os.close(root_fd)


def _expected(log: Sequence[frames.Frame], folder: Path) -> dict[str, verify.Entry]:
    folder.mkdir()
    verify.replay("orders", log, folder)
    return verify.digest(folder)


@given(st.lists(st.integers(0, 1 << 16), min_size=20, max_size=400), st.data())
@settings(max_examples=80, deadline=None)
def test_a_crash_after_any_delta_is_reconciled_to_what_a_clean_replay_gives(
    steering: list[int], data: st.DataObject
) -> None:
    run = list(MadeLog(steering).deltas())
    log = _sealed(run, 7)
    at = data.draw(st.integers(0, len(log)), "checkpoint after so many frames")
    crash = data.draw(st.integers(at * 7, max(at * 7, len(run))), "crash after so many deltas")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "replica"
        root.mkdir()
        state = verify.replay("orders", log[:at], root)
        checkpoint = _copy(state)
        _apply_part(root, state, run[at * 7 : crash])

        state = reconcile(root, checkpoint, lambda: log[at:])

        assert verify.digest(root) == _expected(log, Path(folder) / "twin")
        if log:
            assert (state.position, state.frame_hash) == (log[-1].position, log[-1].hash)
        assert os.listdir(folder).count(".replica.aside") == 0
        # What was found must serve to go on: the next delta of every file lands in the right one.
        more = [write(i, 3, b"on") for i, node in state.tree.nodes.items() if node.kind is trees.Kind.FILE]
        _apply_part(root, state, more)
        extra = FrameChain(tip=frames.Tip(state.position, state.frame_hash)).frame(more)
        assert verify.digest(root) == _expected([*log, extra], Path(folder) / "twin-on")


@given(st.lists(st.integers(0, 1 << 16), min_size=60, max_size=400), st.integers(0, 1 << 32))
@settings(max_examples=40, deadline=None)
def test_a_crash_during_reconcile_is_reconciled_too(steering: list[int], seed: int) -> None:
    run = list(MadeLog(steering).deltas())
    log = _sealed(run, 7)
    rng = random.Random(seed)
    at = rng.randint(0, len(log))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "replica"
        root.mkdir()
        state = verify.replay("orders", log[:at], root)
        checkpoint = _copy(state)
        _apply_part(root, state, run[at * 7 : rng.randint(at * 7, max(at * 7, len(run)))])
        for _ in range(3):
            _reconcile_and_die(root, checkpoint, log[at:], rng.randint(1, 60))
        reconcile(root, _copy(checkpoint), lambda: log[at:])
        assert verify.digest(root) == _expected(log, Path(folder) / "twin")


def _reconcile_and_die(
    root: Path, checkpoint: trees.TreeState, after: list[frames.Frame], calls: int
) -> bool:
    """Run it in a child that is gone after so many system calls that change something; whether it came to its end."""
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

        for name in ("rename", "link", "unlink", "rmdir", "mkdir", "open", "pwrite", "ftruncate", "chmod"):
            dying(name)
        reconcile(root, _copy(checkpoint), lambda: after)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended in (0, 9)
    return ended == 0


@pytest.mark.parametrize("wrong", [b"f", b"other"])
def test_wherever_it_is_cut_off_a_file_of_two_names_in_a_moved_directory_is_found_again(
    tmp_path: Path, wrong: bytes
) -> None:
    """The directory is put aside with one name of the file in it, and the file is put aside as well: whichever of the
    two the next run meets first. With ``wrong`` the name in the directory is right or another than the one on disk.
    """
    base = [
        *(Delta(Op.MKDIR, number, args=(ROOT_ID, b"d%d" % number, 0o755, 0, 0)) for number in range(2, 8)),
        *(Delta(Op.CREATE, 10 + number, args=(number, wrong, 0o644, 0, 0)) for number in range(2, 8)),
        *(write(10 + number, 0, b"%d" % number) for number in range(2, 8)),
        *(Delta(Op.LINK, 10 + number, args=(ROOT_ID, b"l%d" % number)) for number in range(2, 8)),
    ]
    moves = [
        *(Delta(Op.RENAME, n, args=(ROOT_ID, b"d%d" % n, ROOT_ID, b"m%d" % n, False)) for n in range(2, 8)),
        *(Delta(Op.RENAME, 10 + n, args=(n, wrong, n, b"f", False)) for n in range(2, 8) if wrong != b"f"),
    ]
    calls, ended = 0, False
    while not ended:
        root = tmp_path / f"cut-off-after-{calls}"
        root.mkdir()
        state = verify.replay("orders", _sealed(base, 100), root)
        frame = FrameChain(tip=frames.Tip(state.position, state.frame_hash)).frame(moves)
        ended = _reconcile_and_die(root, state, [frame], calls)
        reconcile(root, _copy(state), lambda frame=frame: [frame])  # type: ignore[misc]
        assert sorted(os.listdir(root)) == sorted(f"{kind}{n}" for kind in "lm" for n in range(2, 8))
        for number in range(2, 8):
            assert os.listdir(root / f"m{number}") == ["f"]
            assert (root / f"m{number}" / "f").read_bytes() == b"%d" % number
            assert (root / f"l{number}").samefile(root / f"m{number}" / "f")
        calls += 1
    assert calls > 20, "it was cut off in the middle"


def _swapped(root: Path) -> tuple[trees.TreeState, list[Delta]]:
    """Two directories with a file each, and the deltas that turn them inside out."""
    base = [
        Delta(Op.MKDIR, 2, args=(ROOT_ID, b"a", 0o755, 0, 0)),
        Delta(Op.MKDIR, 3, args=(2, b"b", 0o755, 0, 0)),
        Delta(Op.CREATE, 4, args=(3, b"f", 0o644, 0, 0)),
        write(4, 0, b"deep"),
    ]
    state = verify.replay("orders", _sealed(base, 100), root)
    swap = [
        Delta(Op.RENAME, 3, args=(2, b"b", ROOT_ID, b"b", False)),
        Delta(Op.RENAME, 2, args=(ROOT_ID, b"a", 3, b"a", False)),
        Delta(Op.RENAME, 4, args=(3, b"f", 2, b"f", False)),
        Delta(Op.RENAME, 3, args=(ROOT_ID, b"b", ROOT_ID, b"a", False)),
    ]
    return state, swap


@pytest.mark.parametrize("done", range(5))
def test_directories_turned_inside_out_find_their_places(tmp_path: Path, done: int) -> None:
    root = tmp_path / "replica"
    root.mkdir()
    state, swap = _swapped(root)
    checkpoint = _copy(state)
    _apply_part(root, state, swap[:done])
    frame = FrameChain(tip=frames.Tip(checkpoint.position, checkpoint.frame_hash)).frame(swap)
    reconcile(root, checkpoint, lambda: [frame])
    assert (root / "a" / "a" / "f").read_bytes() == b"deep"
    assert sorted(os.listdir(root)) == ["a"]
    assert sorted(os.listdir(root / "a")) == ["a"]


def test_a_replica_that_was_emptied_behind_our_back_is_a_fault_and_stays_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "replica"
    root.mkdir()
    state, _ = _swapped(root)
    os.unlink(root / "a" / "b" / "f")
    (root / "somebody's").write_bytes(b"work")
    with pytest.raises(errors.Corrupt) as caught:
        reconcile(root, state, list)
    assert caught.value.reason == "replica-differs"
    assert (root / "somebody's").read_bytes() == b"work"


def test_what_no_id_lays_claim_to_is_removed_inside_the_replica_only(tmp_path: Path) -> None:
    root = tmp_path / "replica"
    root.mkdir()
    state, _ = _swapped(root)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"")
    os.symlink(outside, root / "a" / "stray-link")
    os.makedirs(root / "stray" / "deep")
    os.rename(root / "a" / "b", root / "stray" / "deep" / "moved")
    reconcile(root, state, list)
    assert (root / "a" / "b" / "f").read_bytes() == b"deep"
    assert os.listdir(root) == ["a"]
    assert os.listdir(root / "a") == ["b"]
    assert os.listdir(outside) == ["kept"]


def test_a_journal_that_grows_during_reconcile_is_followed_to_where_it_was(tmp_path: Path) -> None:
    root = tmp_path / "replica"
    root.mkdir()
    state, _ = _swapped(root)
    chain = FrameChain(tip=frames.Tip(state.position, state.frame_hash))
    log = [chain.frame([write(4, 0, b"here")])]

    def growing() -> list[frames.Frame]:
        known = list(log)
        new = Delta(Op.CREATE, 5 + len(log), args=(ROOT_ID, b"new%d" % len(log), 0o644, 0, 0))
        log.append(chain.frame([new, write(new.file_id, 0, b"later"), write(4, 0, b"not yet")]))
        return known

    end = log[0].position
    assert reconcile(root, state, growing).position == end
    assert (root / "a" / "b" / "f").read_bytes() == b"here"
    assert os.listdir(root) == ["a"]
