"""The applier against a slow obvious twin, and against deltas and directories that mean harm."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import small_disks
from tests.support.made_logs import MadeLog, columns

from diffkeeper.domain import deltas, errors, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op
from diffkeeper_replicator import safe_paths, verify
from diffkeeper_replicator.applier import Applier

numbers = st.lists(st.integers(0, 1 << 16), max_size=300)


class World:
    """A directory with an applier over it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = safe_paths.open_root(path)
        self.applier = Applier(self.fd, trees.Tree(), {ROOT_ID: safe_paths.identity(self.fd)})

    def apply(self, *run: Delta) -> None:
        # Through the wire format, as in life.
        self.applier.apply(deltas.decode(columns(run).encode()))

    def close(self) -> None:
        self.applier.close()
        os.close(self.fd)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    root = tmp_path / "root"
    root.mkdir()
    made = World(root)
    yield made
    made.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disks.mounted(tmp_path / "small") as disk:
        (disk / "root").mkdir()
        yield disk / "root"


class Twin:
    """What files must hold, by id, each kept as plain bytes."""

    def __init__(self) -> None:
        self.tree = trees.Tree()
        self.content: dict[int, bytearray] = {}

    def apply(self, delta: Delta) -> None:
        self.tree.apply(delta)
        if delta.op is Op.CREATE:
            self.content[delta.file_id] = bytearray()
        if delta.op not in (Op.WRITE, Op.TRUNCATE, Op.PUNCH):
            return
        held = self.content[delta.file_id]
        end = delta.offset + delta.length
        match delta.op:
            case Op.WRITE if delta.length:
                held.extend(bytes(max(0, end - len(held))))
                held[delta.offset : end] = delta.data
            case Op.TRUNCATE:
                held.extend(bytes(max(0, delta.offset - len(held))))
                del held[delta.offset :]
            case Op.PUNCH:
                end = min(end, len(held))
                if end > delta.offset:
                    held[delta.offset : end] = bytes(end - delta.offset)

    def check(self, root: Path) -> None:
        found = {os.fsencode(path): entry for path, entry in verify.digest(root).items()}
        assert set(found) == {path for path, _ in self.tree.paths()} | {b"."}
        for path, file_id in self.tree.paths():
            node, entry = self.tree.nodes[file_id], found[path]
            assert entry.kind == node.kind.name.lower()
            assert (entry.uid, entry.gid) == (node.uid, node.gid)
            if node.kind is not trees.Kind.SYMLINK:
                assert entry.mode == node.mode & 0o1777
            if node.kind is trees.Kind.FILE:
                content = Path(os.fsdecode(os.fsencode(root) + b"/" + path)).read_bytes()
                assert content == self.content[file_id]
                assert entry.links == len(node.entries)
            if node.kind is trees.Kind.SYMLINK:
                assert os.readlink(os.fsencode(root) + b"/" + path) == node.target


@given(numbers, st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_applying_any_log_gives_what_the_slow_twin_holds(steering: list[int], frame_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world, twin = World(Path(folder)), Twin()
        run = list(MadeLog(steering).deltas())
        for first in range(0, len(run), frame_size):
            world.apply(*run[first : first + frame_size])
        for delta in run:
            twin.apply(delta)
        try:
            twin.check(Path(folder))
        finally:
            world.close()


def test_neighbouring_writes_are_joined_and_land_where_they_belong(world: World) -> None:
    world.apply(
        Delta(Op.CREATE, 2, args=(ROOT_ID, b"f", 0o644, 0, 0)),
        Delta(Op.CREATE, 3, args=(ROOT_ID, b"g", 0o644, 0, 0)),
    )
    world.apply(
        *(deltas.write(2, 10 * i, bytes([i]) * 10) for i in range(5)),
        deltas.write(3, 0, b"other"),
        deltas.write(2, 50, b"tail"),
        deltas.write(2, 0, b"head"),
    )
    held = b"".join(bytes([i]) * 10 for i in range(5)) + b"tail"
    assert (world.path / "f").read_bytes() == b"head" + held[4:]
    assert (world.path / "g").read_bytes() == b"other"


def test_a_contradiction_stops_before_the_directory_is_touched(world: World) -> None:
    world.apply(Delta(Op.CREATE, 2, args=(ROOT_ID, b"f", 0o644, 0, 0)))
    before = verify.digest(world.path)
    for bad in (
        Delta(Op.CREATE, 3, args=(ROOT_ID, b"f", 0o644, 0, 0)),
        Delta(Op.UNLINK, 9, args=(ROOT_ID, b"f")),
        Delta(Op.MKDIR, 3, args=(77, b"d", 0o755, 0, 0)),
        Delta(Op.RENAME, 2, args=(2, b"f", ROOT_ID, b"g", False)),
        deltas.write(55, 0, b"to a file nobody made"),
        deltas.write(ROOT_ID, 0, b"to a directory"),
        Delta(Op.TRUNCATE, 56),
        Delta(Op.XATTR, 57, args=(b"user.k", b"v")),
        Delta(Op.ATTR, 58, args=({"mode": 0o600},)),
    ):
        other = World(world.path)
        other.applier.tree.apply(Delta(Op.CREATE, 2, args=(ROOT_ID, b"f", 0o644, 0, 0)))
        with pytest.raises(errors.Corrupt):
            other.apply(bad)
        other.close()
        assert verify.digest(world.path) == before, bad


def test_writes_to_a_file_without_a_name_are_passed_by(world: World) -> None:
    world.apply(
        Delta(Op.CREATE, 2, args=(ROOT_ID, b"f", 0o644, 0, 0)),
        Delta(Op.UNLINK, 2, args=(ROOT_ID, b"f")),
        deltas.write(2, 0, b"into the void"),
        Delta(Op.TRUNCATE, 2, 3),
        Delta(Op.ATTR, 2, args=({"mode": 0o600},)),
    )
    assert os.listdir(world.path) == []


def test_a_directory_swapped_for_a_link_keeps_writes_beneath_the_root(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"mine")
    world.apply(
        Delta(Op.MKDIR, 2, args=(ROOT_ID, b"d", 0o755, 0, 0)),
        Delta(Op.CREATE, 3, args=(2, b"f", 0o644, 0, 0)),
    )
    fresh = World(world.path)  # no descriptor is open yet
    fresh.applier = Applier(fresh.fd, world.applier.tree, world.applier.identities)
    os.rename(world.path / "d", world.path / "was-d")
    os.symlink(outside, world.path / "d")
    for delta in (
        deltas.write(3, 0, b"evil"),
        Delta(Op.CREATE, 4, args=(2, b"new", 0o644, 0, 0)),
        Delta(Op.UNLINK, 3, args=(2, b"f")),
    ):
        with pytest.raises(errors.Corrupt, match="not as the log left it"):
            fresh.apply(delta)
        fresh.applier.close()
        fresh.applier = Applier(fresh.fd, world.applier.tree, world.applier.identities)
    fresh.close()
    assert os.listdir(outside) == ["f"]
    assert (outside / "f").read_bytes() == b"mine"


@pytest.mark.parametrize("swap", [os.symlink, os.link])
def test_a_file_swapped_for_a_link_to_another_is_not_written(
    world: World, tmp_path: Path, swap: Callable[[Path, Path], None]
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    world.apply(Delta(Op.CREATE, 2, args=(ROOT_ID, b"f", 0o644, 0, 0)))
    world.applier.close()
    os.unlink(world.path / "f")
    swap(secret, world.path / "f")
    with pytest.raises(errors.Corrupt) as caught:
        world.apply(deltas.write(2, 0, b"evil"))
    assert caught.value.reason == "replica-differs"
    assert secret.read_bytes() == b"mine"


def test_set_id_bits_and_privileged_attributes_are_left_out(world: World) -> None:
    world.apply(
        Delta(Op.CREATE, 2, args=(ROOT_ID, b"f", 0o6755, 0, 0)),
        Delta(Op.ATTR, 2, args=({"mode": 0o4777},)),
        Delta(Op.XATTR, 2, args=(b"security.capability", b"\1\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")),
    )
    assert os.stat(world.path / "f").st_mode & 0o7777 == 0o777
    assert world.applier.notes == {"xattr-not-allowed": 1}


def test_a_full_disk_is_waited_for_and_the_frame_goes_on_where_it_stopped(small_disk: Path) -> None:
    world = World(small_disk)
    ballast = small_disk.parent / "ballast"
    chunk = bytes(range(256)) * 256
    run = [Delta(Op.CREATE, 2, args=(ROOT_ID, b"f", 0o644, 0, 0)), deltas.write(2, 0, chunk)]
    run += [Delta(Op.MKDIR, 3, args=(ROOT_ID, b"d", 0o755, 0, 0)), deltas.write(2, 1 << 20, chunk * 8)]
    run += [Delta(Op.CREATE, 4, args=(3, b"g", 0o644, 0, 0)), deltas.write(4, 0, b"end")]
    made = columns(run)
    ballast.write_bytes(bytes(1700 * 1024))
    for _ in range(2):
        with pytest.raises(errors.Transient) as caught:
            world.applier.apply(made)
        assert caught.value.reason == "disk-full"
    ballast.unlink()
    world.applier.apply(made)
    assert (small_disk / "f").read_bytes() == chunk + bytes((1 << 20) - len(chunk)) + chunk * 8
    assert (small_disk / "d" / "g").read_bytes() == b"end"
    world.close()


@pytest.mark.parametrize("path", [b"../x", b"d/../../x", b"/etc/passwd", b"link/passwd", b"d/link/passwd"])
@pytest.mark.parametrize("opened", [safe_paths.open_beneath, safe_paths.walk_beneath])
def test_no_path_leads_outside_the_root(tmp_path: Path, path: bytes, opened: object) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (tmp_path / "x").write_bytes(b"")
    os.symlink("/etc", root / "link")
    os.symlink("/etc", root / "d" / "link")
    fd = safe_paths.open_root(root)
    assert callable(opened)
    with pytest.raises(OSError, match=r".+"):
        opened(fd, path, os.O_RDONLY)
    os.close(fd)
