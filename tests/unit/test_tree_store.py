"""The tree in a file against the tree in memory: the same deltas, the same answers, the same refusals."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.made_logs import MadeLog
from tests.unit.test_trees import naming, pointed

from diffkeeper import tree_store
from diffkeeper.domain import errors, positions, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op
from diffkeeper.domain.trees import Identity
from diffkeeper.tree_store import TreeStore

START = positions.START


def empty() -> trees.TreeState:
    return trees.TreeState("v", START, b"\0" * 32, 0, trees.Tree(), {})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TreeStore]:
    made = TreeStore.create(tmp_path / "tree.db", empty())
    yield made
    made.close()


def same(one: trees.Tree, other: trees.Tree) -> None:
    assert one.next_id == other.next_id
    assert list(one.paths()) == list(other.paths())
    assert sorted(one.nodes) == sorted(other.nodes)
    assert len(one.nodes) == len(other.nodes)
    for file_id in one.nodes:
        mine, theirs = one.nodes[file_id], other.nodes[file_id]
        assert (mine.kind, mine.mode, mine.uid, mine.gid, mine.target, mine.entries) == (
            theirs.kind,
            theirs.mode,
            theirs.uid,
            theirs.gid,
            theirs.target,
            theirs.entries,
        )
        assert dict(mine.children) == dict(theirs.children)
        assert bool(mine.children) == bool(theirs.children)
        assert one.path(file_id) == other.path(file_id)


@settings(max_examples=80, deadline=None)
@given(st.lists(naming(), max_size=60))
def test_it_takes_and_refuses_what_the_tree_in_memory_does(run: list[Delta]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = TreeStore.create(Path(folder, "tree.db"), empty())
        twin = trees.Tree()
        for drawn in run:
            delta, outcomes = pointed(drawn, twin), []
            for tree in (twin, store.tree):
                try:
                    tree.apply(delta)
                    outcomes.append("taken")
                except errors.Corrupt as error:
                    outcomes.append(error.message)
            assert outcomes[0] == outcomes[1], delta
        same(twin, store.tree)
        store.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**16), max_size=300), st.integers(0, 40))
def test_whatever_ends_the_process_the_file_has_the_last_commit(numbers: list[int], kept: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tree.db")
        store = TreeStore.create(path, empty())
        at_commit = trees.Tree()
        for number, delta in enumerate(MadeLog(numbers).deltas()):
            store.tree.apply(delta)
            if number < kept:
                at_commit.apply(delta)
            if number + 1 == kept:
                store.commit(positions.Position(1, 7), b"\1" * 32, 99)
        if len(list(MadeLog(numbers).deltas())) < kept:
            at_commit = trees.Tree()
        store.close()
        again = TreeStore.open(path)
        same(at_commit, again.tree)
        assert again.position in (START, positions.Position(1, 7))
        again.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**16), max_size=200))
def test_a_state_goes_in_and_comes_out_unchanged(numbers: list[int]) -> None:
    log = MadeLog(numbers)
    list(log.deltas())
    identities = {
        file_id: Identity(2**64 - 1, 2**63 + file_id, file_id % 3)
        for file_id in log.tree.nodes
        if file_id % 2
    }
    prints = {file_id: (file_id, 2, -3) for file_id in log.tree.nodes if file_id % 3 == 0}
    state = trees.TreeState("v", positions.Position(3, 9), b"\7" * 32, 99, log.tree, identities, prints)
    with tempfile.TemporaryDirectory() as folder:
        store = TreeStore.create(Path(folder, "tree.db"), state)
        back = store.load()
        same(log.tree, back.tree)
        assert (back.volume, back.position, back.frame_hash, back.stamp) == (
            state.volume,
            state.position,
            state.frame_hash,
            state.stamp,
        )
        assert dict(back.identities) == identities
        assert dict(back.fingerprints) == prints
        assert store.tree.unidentified() == log.tree.nodes.keys() - identities.keys()
        assert all(store.identities.holder(known.inode) == file_id for file_id, known in identities.items())
        decoded = trees.decode(trees.encode(back))
        same(log.tree, decoded.tree)
        store.close()


def test_identities_and_fingerprints_change_and_go_with_their_node(store: TreeStore) -> None:
    store.tree.apply(Delta(Op.CREATE, 2, args=(ROOT_ID, b"a", 0o644, 0, 0)))
    store.identities[2] = Identity(1, 5, 6)
    store.fingerprints[2] = (1, 2, 3)
    assert store.identities.pop(2) == Identity(1, 5, 6)
    assert store.identities.pop(2, None) is None
    assert 2 not in store.identities
    assert store.identities.holder(5) is None
    assert store.fingerprints[2] == (1, 2, 3)
    del store.fingerprints[2]
    with pytest.raises(KeyError):
        del store.fingerprints[2]
    store.identities[2] = Identity(1, 7, 0)
    store.tree.apply(Delta(Op.UNLINK, 2, args=(ROOT_ID, b"a")))
    assert (len(store.identities), len(store.fingerprints), store.identities.holder(7)) == (0, 0, None)
    store.identities[2] = Identity(1, 7, 0)  # of a file that is gone
    assert 2 not in store.identities


def test_a_listing_goes_on_while_the_tree_changes(store: TreeStore) -> None:
    for number in range(2, 2503):
        store.tree.apply(Delta(Op.CREATE, number, args=(ROOT_ID, b"%d" % number, 0, 0, 0)))
    seen = []
    for file_id in store.tree.nodes:
        seen.append(file_id)
        if file_id != ROOT_ID:
            store.tree.apply(Delta(Op.UNLINK, file_id, args=(ROOT_ID, b"%d" % file_id)))
    assert seen == list(range(1, 2503))
    assert list(store.tree.nodes) == [ROOT_ID]


def test_many_nodes_are_not_all_remembered(store: TreeStore) -> None:
    for number in range(2, 20_000):
        store.tree.apply(Delta(Op.CREATE, number, args=(ROOT_ID, b"%d" % number, 0, 0, 0)))
        assert store.tree.nodes[number].entries == {(ROOT_ID, b"%d" % number)}
    assert len(store.tree.nodes._lately) <= 8192  # type: ignore[attr-defined]
    assert store.tree.path(19_999) == b"19999"


def test_a_killed_owner_leaves_the_last_synced_commit(tmp_path: Path) -> None:
    path = tmp_path / "tree.db"
    TreeStore.create(path, empty()).close()
    script = """
import sys
from pathlib import Path
from diffkeeper import tree_store
from diffkeeper.domain import positions
from diffkeeper.domain.deltas import Delta, Op
store = tree_store.TreeStore.open(Path(sys.argv[1]))
for number in range(2, 5000):
    store.tree.apply(Delta(Op.CREATE, number, args=(1, b"%d" % number, 0, 0, 0)))
    if number == 3000:
        store.commit(positions.Position(1, 3000), bytes(32), 1)
        store.sync()
print("ready", flush=True)
sys.stdin.read()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    assert owner.stdout.readline() == b"ready\n"
    os.kill(owner.pid, signal.SIGKILL)
    owner.stdin.close()
    owner.stdout.close()
    owner.wait(20)
    store = TreeStore.open(path)
    assert (store.position, len(store.tree.nodes)) == (positions.Position(1, 3000), 3000)
    assert store.tree.next_id == 3001
    store.close()


def test_damage_is_named_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        TreeStore.open(tmp_path / "none")
    path = tmp_path / "tree.db"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(errors.Corrupt, match="left where it is"):
        TreeStore.open(path)
    assert path.read_bytes().startswith(b"this is no database")
    path.unlink()
    TreeStore.create(path, empty()).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE facts SET value = 2 WHERE name = 'version'")
    database.close()
    with pytest.raises(errors.Corrupt, match="version 2"):
        TreeStore.open(path)


def test_making_one_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "tree.db"
    first = TreeStore.create(path, empty())
    first.tree.apply(Delta(Op.MKDIR, 2, args=(ROOT_ID, b"d", 0o755, 0, 0)))
    first.commit(positions.Position(1, 1), bytes(32), 1)
    first.close()
    second = TreeStore.create(path, empty())
    assert (second.position, len(second.tree.nodes)) == (START, 1)
    second.close()
    assert tree_store.TreeStore.open(path).volume == "v"
