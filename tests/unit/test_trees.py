"""The tree against a slow obvious twin, which is a dictionary of paths; and the tree state's way to disk and
back.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffkeeper.domain import errors, positions, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op

Twin = dict[bytes, int]  # path → id, the root under b""
KINDS = {Op.CREATE: "file", Op.MKDIR: "dir", Op.SYMLINK: "link", Op.MKFIFO: "fifo"}


class Paths:
    """Everything is a path; moving a directory renames every path below it."""

    def __init__(self) -> None:
        self.ids: Twin = {b"": ROOT_ID}
        self.kinds: dict[int, str] = {ROOT_ID: "dir"}
        self.given = {ROOT_ID}

    def path_of(self, directory: int) -> bytes | None:
        return next((path for path, file_id in self.ids.items() if file_id == directory), None)

    def at(self, directory: int, name: bytes) -> bytes | None:
        """The path of an entry, None when its directory is not one."""
        path = self.path_of(directory)
        if path is None or self.kinds[directory] != "dir":
            return None
        return path + b"/" + name

    def below(self, path: bytes) -> list[bytes]:
        return [other for other in self.ids if other.startswith(path + b"/")]

    def can(self, delta: Delta) -> bool:
        match delta.op, delta.args:
            case ((Op.CREATE | Op.MKDIR | Op.SYMLINK | Op.MKFIFO), (parent, name, *_)):
                at = self.at(parent, name)
                is_free = delta.file_id not in self.ids.values() and delta.file_id >= 2
                return at is not None and at not in self.ids and is_free
            case Op.LINK, (parent, name):
                at = self.at(parent, name)
                is_linkable = delta.file_id in self.ids.values() and self.kinds[delta.file_id] != "dir"
                return at is not None and at not in self.ids and is_linkable
            case ((Op.UNLINK | Op.RMDIR), (parent, name)):
                at = self.at(parent, name)
                if at is None or self.ids.get(at) != delta.file_id:
                    return False
                is_directory = self.kinds[delta.file_id] == "dir"
                return is_directory == (delta.op is Op.RMDIR) and not self.below(at)
            case Op.RENAME, (src, src_name, dst, dst_name, exchange):
                return self.can_move(delta.file_id, self.at(src, src_name), self.at(dst, dst_name), exchange)
        raise AssertionError(delta)

    def can_move(self, file_id: int, source: bytes | None, target: bytes | None, exchange: bool) -> bool:
        if source is None or target is None or self.ids.get(source) != file_id:
            return False
        other = self.ids.get(target)
        if exchange and other is None:
            return False
        if target.startswith(source + b"/") or (exchange and source.startswith(target + b"/")):
            return False
        if other is None or other == file_id or exchange:
            return True
        return not self.below(target) and (self.kinds[other] == "dir") == (self.kinds[file_id] == "dir")

    def do(self, delta: Delta) -> None:
        match delta.op, delta.args:
            case ((Op.CREATE | Op.MKDIR | Op.SYMLINK | Op.MKFIFO), (parent, name, *_)):
                self.ids[self.at(parent, name) or b"?"] = delta.file_id
                self.kinds[delta.file_id] = KINDS[delta.op]
            case Op.LINK, (parent, name):
                self.ids[self.at(parent, name) or b"?"] = delta.file_id
            case ((Op.UNLINK | Op.RMDIR), (parent, name)):
                del self.ids[self.at(parent, name) or b"?"]
            case Op.RENAME, (src, src_name, dst, dst_name, exchange):
                self.move(self.at(src, src_name) or b"?", self.at(dst, dst_name) or b"?", exchange)

    def move(self, source: bytes, target: bytes, exchange: bool) -> None:
        if self.ids[source] == self.ids.get(target):
            return
        moving = {path: self.ids.pop(path) for path in [source, *self.below(source)]}
        back = {path: self.ids.pop(path) for path in [target, *self.below(target)] if path in self.ids}
        self.ids |= {target + path[len(source) :]: file_id for path, file_id in moving.items()}
        if exchange:
            self.ids |= {source + path[len(target) :]: file_id for path, file_id in back.items()}

    def paths(self) -> set[tuple[bytes, int]]:
        return {(path[1:], file_id) for path, file_id in self.ids.items() if path}


NAMES = st.sampled_from([b"a", b"b", b"c"])
IDS = st.integers(0, 9)


@st.composite
def naming(draw: st.DrawFn) -> Delta:
    op = draw(
        st.sampled_from([Op.CREATE, Op.MKDIR, Op.MKDIR, Op.SYMLINK, Op.LINK, Op.UNLINK, Op.RMDIR, Op.RENAME])
    )
    parent, name = draw(IDS), draw(NAMES)
    if op in (Op.CREATE, Op.MKDIR):
        return Delta(op, draw(IDS), args=(parent, name, 0o755, 0, 0))
    if op is Op.SYMLINK:
        return Delta(op, draw(IDS), args=(parent, name, b"target", 0, 0))
    if op is Op.RENAME:
        return Delta(op, draw(IDS), args=(parent, name, draw(IDS), draw(NAMES), draw(st.booleans())))
    return Delta(op, draw(IDS), args=(parent, name))


def apply_checked(tree: trees.Tree, twin: Paths, delta: Delta) -> None:
    before = list(tree.paths())
    try:
        tree.apply(delta)
    except errors.Corrupt:
        assert not twin.can(delta), f"{delta} was refused"
        assert list(tree.paths()) == before, "a refused delta changed the tree"
        return
    assert twin.can(delta), f"{delta} was accepted"
    twin.do(delta)


@settings(max_examples=400)
@given(st.lists(naming(), max_size=40))
def test_the_tree_is_its_slow_twin(run: list[Delta]) -> None:
    tree, twin = trees.Tree(), Paths()
    for delta in run:
        apply_checked(tree, twin, pointed(delta, tree))
        assert set(tree.paths()) == twin.paths()
    for path, file_id in tree.paths():
        assert tree.walk(path) == file_id
        assert tree.walk(tree.path(file_id) or b"?") == file_id
    assert all(file_id < tree.next_id for file_id in tree.nodes)


def pointed(delta: Delta, tree: trees.Tree) -> Delta:
    """Half of the drawn deltas name the id that stands at their entry, or a fresh one, so that many are
    accepted.
    """
    if delta.file_id % 2:
        return delta
    if delta.op in (Op.UNLINK, Op.RMDIR, Op.RENAME):
        return Delta(delta.op, tree.child(delta.args[0], delta.args[1]) or delta.file_id, args=delta.args)
    return Delta(delta.op, tree.next_id, args=delta.args) if delta.op is not Op.LINK else delta


def some_tree() -> trees.Tree:
    tree = trees.Tree()
    for delta in (
        Delta(Op.MKDIR, 2, args=(ROOT_ID, b"d", 0o700, 1, 2)),
        Delta(Op.CREATE, 3, args=(2, b"f", 0o640, 3, 4)),
        Delta(Op.LINK, 3, args=(ROOT_ID, b"g")),
        Delta(Op.SYMLINK, 4, args=(ROOT_ID, b"s", b"d/f", 0, 0)),
        Delta(Op.MKFIFO, 7, args=(2, b"\xff", 0o600, 0, 0)),
        Delta(Op.ATTR, ROOT_ID, args=({"mode": 0o711},)),
    ):
        tree.apply(delta)
    return tree


def some_state() -> trees.TreeState:
    identities = {2: trees.Identity(5, 6, 7), 3: trees.Identity(5, 8, 0)}
    return trees.TreeState(
        "v", positions.Position(3, 9), b"\7" * 32, 99, some_tree(), identities, {3: (1, 2, 3)}
    )


def test_paths_come_parents_first_and_names_in_order() -> None:
    paths = [path for path, _ in some_tree().paths()]
    assert paths == [b"d", b"g", b"s", b"d/f", b"d/\xff"]


def test_a_tree_state_comes_back() -> None:
    state = some_state()
    back = trees.decode(trees.encode(state))
    assert (back.tree.nodes, back.tree.next_id) == (state.tree.nodes, state.tree.next_id)
    back.tree = state.tree  # trees compare by identity
    assert back == state


@given(st.data())
def test_any_altered_byte_of_a_tree_state_is_found(data: st.DataObject) -> None:
    wire = bytearray(trees.encode(some_state()))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(errors.Corrupt):
        trees.decode(bytes(wire))


@pytest.mark.parametrize(
    "wire", [b"", b"DKT1", b"\x80", trees.encode(some_state())[:-1], trees.encode(some_state()) + b"!"]
)
def test_cut_or_extended_tree_states_are_refused(wire: bytes) -> None:
    with pytest.raises(errors.Corrupt):
        trees.decode(wire)


def test_ids_below_the_first_free_one_cannot_be_given() -> None:
    for file_id in (0, ROOT_ID):
        with pytest.raises(errors.Corrupt):
            trees.Tree().apply(Delta(Op.CREATE, file_id, args=(ROOT_ID, b"a", 0, 0, 0)))
