"""The tree that a capture works on against the tree in memory: whatever is committed, fails or is forgotten between."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.made_logs import MadeLog
from tests.support.replays import Replay, snapshot
from tests.support.sinks import ListSink
from tests.unit.test_trees import naming, pointed

from diffkeeper.domain import errors, positions, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op
from diffkeeper.tree_store import TreeStore
from diffkeeper_capture import working_tree
from diffkeeper_capture.contents import RACY_NS
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.shadow import Shadow
from diffkeeper_capture.working_tree import WorkingTree

START = positions.START


def made(path: Path) -> WorkingTree:
    return WorkingTree(
        TreeStore.create(path, trees.TreeState("v", START, bytes(32), 0, trees.Tree(), {}), 64)
    )


def opened(path: Path) -> WorkingTree:
    return WorkingTree(TreeStore.open(path, 64))


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[WorkingTree]:
    tree = made(tmp_path / "tree.db")
    yield tree
    tree.close()


def commit(tree: WorkingTree, number: int = 1) -> None:
    tree.commit(positions.Position(1, number), bytes(32), number, {})


def same(one: trees.Tree, other: trees.Tree) -> None:
    assert one.next_id == other.next_id
    assert list(one.paths()) == list(other.paths())
    assert sorted(one.nodes) == sorted(other.nodes) == sorted(one.ids()) == sorted(other.ids())
    assert len(one.nodes) == len(other.nodes)
    for file_id in one.nodes:
        mine, theirs = one.nodes[file_id], other.nodes[file_id]
        for field in ("kind", "mode", "uid", "gid", "target", "entries"):
            assert getattr(mine, field) == getattr(theirs, field)
        assert dict(mine.children) == dict(theirs.children) == dict(theirs.children.items())
        assert set(mine.children) == set(theirs.children)
        assert (len(mine.children), bool(mine.children)) == (len(theirs.children), bool(theirs.children))
        assert one.path(file_id) == other.path(file_id)


# What happens to a tree beside changes.
STEPS = st.sampled_from(["feed", "commit", "fail", "none", "none", "none"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(naming(), STEPS), max_size=60), st.booleans())
def test_it_takes_and_refuses_what_the_tree_in_memory_does(
    run: list[tuple[Delta, str]], forgets: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if forgets:
            patch.setattr(working_tree, "REMEMBERED", 1)
            patch.setattr(working_tree, "_PAGE", 2)
        path = Path(folder, "tree.db")
        tree, twin = made(path), trees.Tree()
        for number, (drawn, step) in enumerate(run):
            delta, outcomes = pointed(drawn, twin), []
            for each in (twin, tree):
                try:
                    each.apply(delta)
                    outcomes.append("taken")
                except errors.Corrupt as error:
                    outcomes.append(error.message)
            assert outcomes[0] == outcomes[1], delta
            if step == "feed":
                tree.feed(2)
            elif step == "commit":
                commit(tree, number)
            elif step == "fail":
                tree.feed(3)
                tree._feed_again()
        same(twin, tree)
        commit(tree)
        same(twin, tree)
        tree.close()
        again = opened(path)
        same(twin, again)
        again.close()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**16), max_size=300), st.integers(0, 60))
def test_a_process_that_ends_leaves_the_last_commit(numbers: list[int], kept: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tree.db")
        tree, at_commit = made(path), trees.Tree()
        for number, delta in enumerate(MadeLog(numbers).deltas()):
            if number == kept:
                commit(tree)
            if number < kept:
                at_commit.apply(delta)
            tree.apply(delta)
            tree.feed(1)
        if tree.saved != START:
            tree.close()
            again = opened(path)
            same(at_commit, again)
            again.close()
        else:
            tree.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["make", "bind", "unbind", "remove", "generation", "commit", "feed"]),
            st.integers(1, 12),
            st.sampled_from([1, 2, 3, 4, (1 << 63) + 5]),
        ),
        max_size=60,
    )
)
def test_inodes_are_those_of_the_shadow_in_memory(run: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = made(Path(folder, "tree.db"))
        both = [Shadow(ListSink()), Shadow(ListSink(), tree)]
        for step, file_id, inode in run:
            if step == "commit":
                commit(tree)
            elif step == "feed":
                tree.feed(1)
            for shadow in both:
                _act(shadow, step, file_id, inode)
        commit(tree)
        one, other = both
        assert other.unmapped == one.unmapped == tree.unidentified()
        assert dict(other.inode_of) == one.inode_of
        assert dict(other.by_inode) == one.by_inode
        assert dict(other.generation_of) == one.generation_of
        assert {1, 2, 3, 99} - other.by_inode.keys() == {1, 2, 3, 99} - one.by_inode.keys()
        tree.close()


def _act(shadow: Shadow, step: str, file_id: int, inode: int) -> None:
    name = b"%d" % file_id
    if step == "make" and shadow.tree.child(ROOT_ID, name) is None:
        shadow.make(trees.Kind.FILE, ROOT_ID, name, 0o644, 0, 0, 1)
    elif step == "remove" and shadow.tree.child(ROOT_ID, name) is not None:
        shadow.remove(ROOT_ID, name, 1)
    elif file_id in shadow.tree.nodes:
        if step == "bind":
            shadow.bind(file_id, inode, file_id % 3)
        elif step == "unbind":
            shadow.unbind(file_id)
        elif step == "generation":
            shadow.is_generation(file_id, inode % 5)


def test_a_file_that_is_gone_has_its_inode_until_that_is_taken_from_it(tree: WorkingTree) -> None:
    shadow = Shadow(ListSink(), tree)
    told: list[int | None] = []
    shadow.on_forget.append(lambda file_id: told.append(shadow.inode_of.get(file_id)))
    file_id = shadow.make(trees.Kind.FILE, ROOT_ID, b"a", 0o644, 0, 0, 1)
    shadow.bind(file_id, 77, 5)
    commit(tree)
    shadow.remove(ROOT_ID, b"a", 1)
    assert told == [77]
    assert 77 not in shadow.by_inode
    assert file_id not in shadow.inode_of
    commit(tree)
    assert 77 not in shadow.by_inode


def test_a_disk_that_is_full_takes_nothing_away_and_all_is_kept_later(tmp_path: Path) -> None:
    path = tmp_path / "tree.db"
    tree = made(path)
    for number in range(400):
        tree.apply(Delta(Op.CREATE, 2 + number, args=(ROOT_ID, b"early-%d" % number, 0o644, 0, 0)))
    commit(tree)
    (pages,) = tree._store.execute("PRAGMA page_count").fetchone()
    tree._store.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(3000):
        tree.apply(Delta(Op.CREATE, 402 + number, args=(ROOT_ID, b"late-%d" % number, 0o644, 0, 0)))
    tree.apply(Delta(Op.UNLINK, 2, args=(ROOT_ID, b"early-0")))
    for _ in range(2):
        with pytest.raises(errors.Transient):
            tree.commit(positions.Position(1, 2), bytes(32), 2, {3: (1, 2, 3)})
        assert tree.saved == positions.Position(1, 1)
        assert len(tree.nodes) == 3400
        assert tree.child(ROOT_ID, b"late-2999") == 3401
        assert tree.child(ROOT_ID, b"early-0") is None
    tree._store.execute(f"PRAGMA max_page_count = {1 << 30}")
    tree.commit(positions.Position(1, 2), bytes(32), 2, {3: (1, 2, 3)})
    tree.close()
    again = opened(path)
    assert (again.saved, len(again.nodes)) == (positions.Position(1, 2), 3400)
    assert again.fingerprints[3] == (1, 2, 3)
    again.close()


def test_a_reader_that_finds_no_room_is_answered_all_the_same(tree: WorkingTree) -> None:
    """What was fed does not fit into memory and not on the disk: whoever asks is the one to notice."""
    tree.apply(Delta(Op.CREATE, 2, args=(ROOT_ID, b"a", 0o644, 0, 0)))
    commit(tree)
    tree.apply(Delta(Op.CREATE, 3, args=(ROOT_ID, b"b", 0o644, 0, 0)))
    tree.feed(10)
    asked = tree._store.ask
    refusals = [sqlite3.OperationalError("database or disk is full")]

    def ask(query: str, values: tuple[object, ...]) -> list[object]:
        if refusals:
            raise refusals.pop()
        return asked(query, values)

    tree._store.ask = ask  # type: ignore[method-assign]
    assert tree.child(ROOT_ID, b"a") == 2
    assert tree.child(ROOT_ID, b"b") == 3
    commit(tree)
    assert [row[0] for row in asked("SELECT id FROM nodes ORDER BY id", ())] == [1, 2, 3]


def test_damage_of_the_file_is_told_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "tree.db"
    tree = made(path)
    for number in range(2000):
        tree.apply(Delta(Op.CREATE, 2 + number, args=(ROOT_ID, b"file-%d" % number, 0o644, 0, 0)))
    commit(tree)
    tree.sync()
    tree.close()
    again = opened(path)
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(errors.Corrupt, match="cannot be read"):
        again.child(ROOT_ID, b"file-77")
    with pytest.raises(errors.Corrupt, match="cannot be read"):
        list(again.ids())
    again.close()


def test_memory_has_only_what_changed_and_what_was_used_lately(tree: WorkingTree) -> None:
    """The bound that holds whatever the number of files."""
    for number in range(20_000):
        tree.apply(Delta(Op.CREATE, 2 + number, args=(ROOT_ID, b"file-%d" % number, 0o644, 0, 0)))
        tree.inode_of[2 + number] = 1000 + number
        if tree.unsaved >= 8192:
            commit(tree, number)
    commit(tree, 20_000)
    most = working_tree.REMEMBERED
    for number in range(0, 20_000, 3):
        assert tree.inode_of[2 + number] == 1000 + number
        assert tree.by_inode[1000 + number] == 2 + number
        assert len(tree._lately) <= most
        assert len(tree._lately_holders) <= most
    assert not (tree._changed or tree._names or tree._holders or tree._unfed or tree._unfed_names)
    assert sum(1 for _ in tree.ids()) == 20_001


def test_a_first_sight_that_ended_in_the_middle_is_gone_on_with_from_its_last_commit(tmp_path: Path) -> None:
    root, path = tmp_path / "root", tmp_path / "tree.db"
    root.mkdir()
    for number in range(400):
        (root / f"file-{number}").write_bytes(b"%d" % number)
    time.sleep(RACY_NS / 1e9 + 0.01)
    sink, later = ListSink(), ListSink()
    observer = Observer(root, sink, tree=made(path))
    tree = observer.shadow.tree
    assert isinstance(tree, WorkingTree)
    kept = 0
    for step in observer.scan_base():
        if step.files >= 200 and not kept:
            tree.commit(positions.Position(1, 1), bytes(32), 1, observer.take_prints())
            kept = len(sink.deltas)
        elif step.files >= 300:
            break
    observer.close()
    tree.close()
    assert 0 < kept < len(sink.deltas)
    again = opened(path)
    observer = Observer(root, later, tree=again)
    for _ in observer.rescan("test"):
        pass
    replay = Replay().apply_all(sink.deltas[:kept] + later.deltas)
    assert replay.snapshot() == snapshot(root)
    seen = sum(delta.op is Op.WRITE for delta in sink.deltas[:kept])
    assert sum(delta.op is Op.WRITE for delta in later.deltas) == 400 - seen
    assert again.unidentified() == observer.shadow.unmapped == set()
    observer.close()
    again.close()
