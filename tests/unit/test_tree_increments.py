"""What became of a tree since it was told as a whole: against the whole tree told again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.made_logs import MadeLog

from diffkeeper import tree_files
from diffkeeper.domain import errors, frames, positions, tree_increments, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op
from diffkeeper.tree_store import TreeStore

BASE = frames.Tip(positions.Position(3, 7), b"\x07" * 32)
END = frames.Tip(positions.Position(3, 90), b"\x5a" * 32)


def state_of(tree: trees.Tree, tip: frames.Tip, stamp: int) -> trees.TreeState:
    identities = {file_id: trees.Identity(8, 1000 + file_id, 0) for file_id in tree.nodes}
    prints = {
        file_id: (stamp, file_id, 0) for file_id, node in tree.nodes.items() if node.kind is trees.Kind.FILE
    }
    return trees.TreeState("v", tip.position, tip.hash, stamp, tree, identities, prints)


def take(tree: trees.Tree, run: list[Delta]) -> set[int]:
    """The rule by which a replica remembers: what each delta is about, and what a rename replaces."""
    touched: set[int] = set()
    for delta in run:
        touched.add(delta.file_id)
        if delta.op is Op.RENAME:
            replaced = tree.child(delta.args[2], delta.args[3])
            touched.update(() if replaced is None else (replaced,))
        tree.apply(delta)
    return touched


def told(numbers: list[int], share: int) -> tuple[trees.TreeState, trees.TreeState, set[int]]:
    """The tree in the midst of a log and at its end, and what was touched between."""
    run = list(MadeLog(numbers).deltas())
    tree = trees.Tree()
    take(tree, run[: len(run) * share // 10])
    before = state_of(tree.copy(), BASE, 10)
    touched = take(tree, run[len(run) * share // 10 :])
    after = state_of(tree, END, 20)
    for file_id in after.fingerprints.keys() - touched:
        after.fingerprints[file_id] = before.fingerprints[file_id]
    return before, after, touched


def increment_of(after: trees.TreeState, touched: set[int]) -> tree_increments.Increment:
    prints = {file_id: value for file_id, value in after.fingerprints.items() if file_id in touched}
    return tree_increments.since(BASE, after, touched, prints)


def as_told(state: trees.TreeState) -> object:
    """All that a state says, in an order of its own."""
    nodes = {
        file_id: (node.kind, node.mode, node.uid, node.gid, node.target, frozenset(node.entries))
        for file_id, node in state.tree.nodes.items()
    }
    return (
        (state.volume, state.position, state.frame_hash, state.stamp, state.tree.next_id),
        nodes,
        dict(state.identities),
        dict(state.fingerprints),
        list(state.tree.paths()),
    )


NUMBERS = st.lists(st.integers(0, 2**16), max_size=250)


@settings(max_examples=80, deadline=None)
@given(NUMBERS, st.integers(0, 10))
def test_a_state_and_what_became_of_it_are_the_state_told_again(numbers: list[int], share: int) -> None:
    before, after, touched = told(numbers, share)
    increment = tree_increments.decode(tree_increments.encode(increment_of(after, touched)))
    wanted = as_told(after)
    assert as_told(tree_increments.applied(trees.decode(trees.encode(before)), increment)) == wanted


@settings(max_examples=25, deadline=None)
@given(NUMBERS, st.integers(0, 10))
def test_a_tree_in_a_file_advances_to_the_same_and_tells_the_same(numbers: list[int], share: int) -> None:
    before, after, touched = told(numbers, share)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tree.db")
        store = TreeStore.create(path, before)
        list(store.tree.paths())  # so that it remembers nodes as they were
        store.advance(increment_of(after, touched))
        wanted = as_told(after)
        assert as_told(store.load()) == wanted
        assert list(store.tree.paths()) == list(after.tree.paths())
        again = store.increment(BASE, touched)
        assert as_told(tree_increments.applied(trees.decode(trees.encode(before)), again)) == wanted
        assert as_told(TreeStore.snapshot(path)) == wanted
        store.close()


def test_what_is_told_on_from_another_tree_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    before, after, touched = told(list(range(100)), 5)
    increment = increment_of(after, touched)
    before.frame_hash = b"\x01" * 32
    store = TreeStore.create(tmp_path / "tree.db", before)
    wanted = as_told(store.load())
    with pytest.raises(errors.Corrupt) as caught:
        store.advance(increment)
    assert caught.value.reason == "tree-base-differs"
    assert as_told(store.load()) == wanted
    with pytest.raises(errors.Corrupt):
        tree_increments.applied(before, increment)
    store.close()


def test_a_file_is_read_with_the_one_it_was_told_on_from(tmp_path: Path) -> None:
    before, after, touched = told(list(range(1, 200)), 3)
    wanted = as_told(after)
    whole, part = tmp_path / tree_files.BASE, tmp_path / "promoted.state"
    part.write_bytes(tree_increments.encode(increment_of(after, touched)))
    assert tree_files.tip(part) == END
    with pytest.raises(FileNotFoundError):
        tree_files.load(part)
    whole.write_bytes(trees.encode(before))
    assert as_told(tree_files.load(part)) == wanted
    assert tree_files.tip(whole) == BASE
    whole.write_bytes(part.read_bytes())
    with pytest.raises(errors.Corrupt):
        tree_files.load(part)


@pytest.mark.parametrize("at", [0, 10, 40, -1])
def test_other_bytes_than_those_that_were_written_are_refused(at: int) -> None:
    tree = trees.Tree()
    tree.apply(Delta(Op.CREATE, 2, args=(ROOT_ID, b"f", 0o644, 0, 0)))
    data = bytearray(tree_increments.encode(increment_of(state_of(tree, END, 20), {2})))
    data[at] ^= 1
    with pytest.raises(errors.Corrupt) as caught:
        tree_increments.decode(bytes(data))
    assert caught.value.reason == "malformed-tree-state"
