"""Compares a directory that a program left with what the journal says of a position, byte for byte, changing nothing.

Every live byte of the position is read out of the journal once and compared with the file that has its id here; what
the directory has instead goes into a branch, what it should have goes into a plan beside it. Nothing is taken on trust:
neither fingerprints nor what an agent last saw, except for which file is which after a rename. So what the plan leads
to is what a replay of the whole log would be, and only what differs is written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack
from blake3 import blake3

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_replicator import orphan_branches, reconcile, safe_paths
from diffkeeper_replicator.backward import Images, Piece
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.orphan_branches import Change, Kept
from diffkeeper_replicator.states import State

_BLOCK_BYTES = 4096
_READ_BYTES = 1 << 20
Fingerprint = tuple[int, int, int]


@dataclass(slots=True)
class Target:
    """Names and identities of the position: what the log says, and which file here is which id."""

    tip: frames.Tip
    stamp: int
    tree: trees.Tree
    base_end: str | None
    identities: dict[int, trees.Identity] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """What is to be written so that the directory is the position. Bytes lie in ``truth`` beside it; -1: zeros."""

    ranges: dict[int, list[Kept]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    xattrs: dict[int, dict[bytes, bytes | None]] = field(default_factory=dict)
    mtimes: dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(kept.length for ranges in self.ranges.values() for kept in ranges)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of the directory as it is."""

    path: bytes
    status: os.stat_result

    @property
    def kind(self) -> trees.Kind | None:
        return safe_paths.kind_of(self.status.st_mode)

    @property
    def fingerprint(self) -> Fingerprint:
        return (self.status.st_size, self.status.st_mtime_ns, self.status.st_ctime_ns)


def target_of(journal: Journal, tip: frames.Tip, base: State | None = None) -> Target:
    """The names at a position, from the journal's first frame, or from ``base``, which that continues. Blocking."""
    target = Target(frames.ORIGIN_TIP, 0, trees.Tree(), None)
    if base is not None:
        target = Target(base.tip, base.stamp, base.tree.copy(), None)
    for frame in journal.frames_after(target.tip.position):
        reconcile.replay_names(target.tree, frame.columns())
        target.tip, target.stamp = frames.Tip(frame.position, frame.hash), frame.header.last
        if frames.Flag.BASE_END in frame.header.flags and target.base_end is None:
            target.base_end = str(frame.position)
        if frame.position >= tip.position:
            break
    if target.tip != tip:
        raise errors.Corrupt(
            f"the journal does not hold frame {tip.position} of the chain; nothing was changed",
            reason="not-in-journal",
            hint="the directory can be built anew from the log",
        )
    if base is not None and target.base_end is None:
        target.base_end = str(base.position)  # the scan ended before what the journal still has
    return target


def walk(root_fd: int) -> Iterator[Found]:
    """Every entry below the root, directories before what is in them."""
    stack = [b""]
    while stack:
        path = stack.pop()
        dir_fd = safe_paths.open_beneath(root_fd, path, safe_paths.DIR_FLAGS)
        try:
            for name in sorted(os.fsencode(entry) for entry in os.listdir(dir_fd)):
                found = Found(
                    path + b"/" + name if path else name, os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
                )
                if stat.S_ISDIR(found.status.st_mode):
                    stack.append(found.path)
                yield found
        finally:
            os.close(dir_fd)


def fingerprints(root_fd: int) -> dict[bytes, Fingerprint]:
    return {found.path: found.fingerprint for found in walk(root_fd)}


def identify(
    root_fd: int, target: Target, entries: list[Found], known: dict[int, trees.Identity]
) -> dict[int, int]:
    """Find the target's ids among the entries: by the inodes that were known of them, then by path; fills in its
    identities and gives inode → id. A symbolic link is the same only with the same target.
    """
    by_inode: dict[int, int] = {}
    by_path = {found.path: found for found in entries}
    at_inode = {found.status.st_ino: found for found in entries}

    def take(file_id: int, found: Found | None) -> None:
        node = target.tree.nodes.get(file_id)
        if found is None or node is None or node.kind is not found.kind:
            return
        if file_id in target.identities or found.status.st_ino in by_inode:
            return
        if node.kind is trees.Kind.SYMLINK and _link_target(root_fd, found.path) != node.target:
            return
        by_inode[found.status.st_ino] = file_id
        target.identities[file_id] = trees.Identity(found.status.st_dev, found.status.st_ino, 0)

    for file_id, identity in known.items():
        take(file_id, at_inode.get(identity.inode))
    for path, file_id in target.tree.paths():
        take(file_id, by_path.get(path))
    root = os.fstat(root_fd)
    target.identities[ROOT_ID] = trees.Identity(root.st_dev, root.st_ino, 0)
    return by_inode


class Surveyor:
    """One comparison; ``run`` reads all and writes only into the branch and beside it."""

    def __init__(
        self,
        root_fd: int,
        journal: Journal,
        target: Target,
        writer: orphan_branches.Writer,
        base: State | None = None,
    ) -> None:
        self._root_fd = root_fd
        self._base = base
        self._journal = journal
        self._target = target
        self._writer = writer
        self.plan = Plan()
        self._changes: dict[int, Change] = {}
        self._fds: dict[int, int] = {}
        self._paths: dict[int, bytes] = {}
        self._names: dict[int, list[bytes]] = {}
        # Whose content differs, if only in size.
        self._touched: set[int] = set()
        self._sizes: dict[int, int] = {}

    def run(self, entries: list[Found], by_inode: dict[int, int]) -> list[Change]:
        """What the branch differs in. The plan is complete and durable after."""
        changes = self._compare_names(entries, by_inode)
        truth = self._writer.directory / "truth"
        with open(truth, "wb") as file:
            self._compare_contents(file)
            file.flush()
            os.fsync(file.fileno())
        write_plan(self._writer.directory / "plan", self._target, self.plan)
        told = {id(change) for change in changes}
        changes += [change for change in self._changes.values() if id(change) not in told]
        changes += self._other_names(changes)
        return sorted(changes, key=lambda change: change.path)

    def _other_names(self, changes: list[Change]) -> list[Change]:
        """A file with many names differs under each of them."""
        told = {change.path for change in changes if change.kind != "removed"}
        others: list[Change] = []
        for change in changes:
            content = self._changes.get(change.file_id)
            if content is not None and change.kind != "removed":
                change.ranges = content.ranges
        for file_id in self._touched:
            content = self._changes[file_id]
            for path in self._names[file_id]:
                if path not in told:
                    others.append(replace(content, path=path, kind="changed", before=path))
        return others

    # -- names -----------------------------------------------------------------------------------------------

    def _compare_names(self, entries: list[Found], by_inode: dict[int, int]) -> list[Change]:
        before: dict[int, set[bytes]] = {}
        for path, living in self._target.tree.paths():
            before.setdefault(living, set()).add(path)
        changes: list[Change] = []
        for found in entries:
            known = by_inode.get(found.status.st_ino)
            if known is None:
                changes.append(self._added(found))
                continue
            file_id = known
            self._paths.setdefault(file_id, found.path)
            self._names.setdefault(file_id, []).append(found.path)
            self._sizes[file_id] = found.status.st_size
            if found.path in before[file_id]:
                before[file_id].discard(found.path)
                if self._attributes_differ(file_id, found):
                    changes.append(self._change(file_id, found, "attributes", found.path))
            else:
                stood = self._target.tree.path(file_id)
                changes.append(self._change(file_id, found, "renamed", stood))
        gone = [
            Change(path, "removed", path, living, self._target.tree.nodes[living].kind.name.lower())
            for living, paths in before.items()
            for path in paths
        ]
        for change in changes:
            if change.file_id:
                self._changes.setdefault(change.file_id, change)
        return changes + gone

    def _attributes_differ(self, file_id: int, found: Found) -> bool:
        node, status = self._target.tree.nodes[file_id], found.status
        if found.kind is trees.Kind.SYMLINK:
            return (node.uid, node.gid) != (status.st_uid, status.st_gid)
        return (node.mode, node.uid, node.gid) != (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)

    def _change(self, file_id: int, found: Found, kind: str, before: bytes | None) -> Change:
        status = found.status
        return Change(
            found.path,
            kind,
            before,
            file_id,
            found.kind.name.lower() if found.kind is not None else "other",
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_size if found.kind is trees.Kind.FILE else 0,
            _link_target(self._root_fd, found.path) if found.kind is trees.Kind.SYMLINK else b"",
        )

    def _added(self, found: Found) -> Change:
        change = self._change(0, found, "added", None)
        if found.kind is trees.Kind.FILE:
            fd = safe_paths.open_beneath(
                self._root_fd, found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            try:
                change.ranges = orphan_branches.copy_file(self._writer, fd, found.status.st_size)
            finally:
                os.close(fd)
        return change

    # -- contents --------------------------------------------------------------------------------------------

    def _compare_contents(self, truth: Any) -> None:
        nodes = self._target.tree.nodes
        files = {file_id for file_id, node in nodes.items() if node.kind is trees.Kind.FILE}
        directories = {file_id for file_id, node in nodes.items() if node.kind is trees.Kind.DIR}
        images = Images(files | directories)  # of directories for their extended attributes
        try:
            for piece in images.pieces(self._journal, self._target.tip, self._base):
                self._compare(piece, truth)
            for file_id, image in images.images.items():
                assert image.size is not None, "all of the journal was read"
                if file_id in files:
                    self._compare_size(file_id, image.size)
                if image.mtime_ns is not None:
                    self.plan.mtimes[file_id] = image.mtime_ns
                self.plan.xattrs[file_id] = image.xattrs
        finally:
            for fd in self._fds.values():
                os.close(fd)

    def _compare(self, piece: Piece, truth: Any) -> None:
        offset, end, at = piece.offset, piece.offset + piece.length, 0
        while offset < end:
            length = min(_READ_BYTES, end - offset)
            wanted = None if piece.data is None else piece.data[at : at + length]
            fd = self._open(piece.file_id)
            here = os.pread(fd, length, offset) if fd >= 0 else b""
            if wanted is None:
                here_zero = not here.strip(b"\0")
                if not here_zero:
                    self._differs(piece.file_id, offset, length, here, None, truth)
            elif here != wanted:
                self._differs(piece.file_id, offset, length, here, wanted, truth)
            offset, at = offset + length, at + length

    def _differs(
        self, file_id: int, offset: int, length: int, here: bytes, wanted: memoryview | None, truth: Any
    ) -> None:
        """Block by block, neighbours as one."""
        begin = 0
        while begin < length:
            if self._block_is_same(here, wanted, begin, length):
                begin += _BLOCK_BYTES
                continue
            end = begin + _BLOCK_BYTES
            while end < length and not self._block_is_same(here, wanted, end, length):
                end += _BLOCK_BYTES
            end = min(end, length)
            self._note(
                file_id, offset + begin, end - begin, here[begin:end], wanted and wanted[begin:end], truth
            )
            begin = end

    @staticmethod
    def _block_is_same(here: bytes, wanted: memoryview | None, begin: int, length: int) -> bool:
        end = min(begin + _BLOCK_BYTES, length)
        block = here[begin:end]
        if wanted is None:
            return not block.strip(b"\0")
        return block == wanted[begin:end]

    def _note(
        self, file_id: int, offset: int, length: int, here: bytes, wanted: memoryview | None, truth: Any
    ) -> None:
        at = -1
        if wanted is not None:
            at = truth.tell()
            truth.write(wanted)
        self.plan.ranges.setdefault(file_id, []).append(Kept(offset, length, at))
        if file_id in self._paths:
            self._keep(file_id, offset, here)

    def _keep(self, file_id: int, offset: int, here: bytes) -> None:
        """What the branch has there; nothing beyond its end."""
        self._touched.add(file_id)
        change = self._changes.get(file_id)
        if change is None:
            path = self._paths[file_id]
            status = os.fstat(self._open(file_id))
            change = self._change(file_id, Found(path, status), "changed", self._target.tree.path(file_id))
            self._changes[file_id] = change
        if here:
            change.ranges.append(Kept(offset, len(here), self._writer.keep(here)))

    def _compare_size(self, file_id: int, size: int) -> None:
        here = self._sizes.get(file_id)
        if here == size:
            return
        self.plan.sizes[file_id] = size
        if here is None:
            return
        fd = self._open(file_id)
        for at in range(size, here, _READ_BYTES):
            self._keep(file_id, at, os.pread(fd, min(_READ_BYTES, here - at), at))
        if here < size:
            self._keep(file_id, here, b"")

    def _open(self, file_id: int) -> int:
        """-1 where the directory does not have the file."""
        fd = self._fds.get(file_id)
        if fd is None:
            path = self._paths.get(file_id)
            if path is None:
                return -1
            if len(self._fds) >= 256:
                os.close(self._fds.pop(next(iter(self._fds))))
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            fd = self._fds[file_id] = safe_paths.open_beneath(self._root_fd, path, flags)
        return fd


def write_plan(path: Path, target: Target, plan: Plan) -> None:
    packed = msgpack.packb(
        {
            "tip": [str(target.tip.position), target.tip.hash],
            "ids": [[file_id, i.device, i.inode] for file_id, i in target.identities.items()],
            "ranges": [
                [file_id, [[k.offset, k.length, k.at] for k in ranges]]
                for file_id, ranges in plan.ranges.items()
            ],
            "sizes": list(plan.sizes.items()),
            "xattrs": [[file_id, list(xattrs.items())] for file_id, xattrs in plan.xattrs.items()],
            "mtimes": list(plan.mtimes.items()),
        },
        use_bin_type=True,
    )
    atomic_files.write_bytes(path, blake3(packed).digest() + packed)


def read_plan(path: Path, target: Target) -> Plan:
    """The plan of a survey that was complete; the target gets the identities that were found by it."""
    raw = path.read_bytes()
    if raw[:32] != blake3(raw[32:]).digest():
        raise errors.Corrupt(f"{path} does not match its checksum", reason="branch-damaged")
    fields = msgpack.unpackb(raw[32:], raw=False)
    if fields["tip"] != [str(target.tip.position), target.tip.hash]:
        raise errors.Corrupt(f"{path} is of another position", reason="branch-damaged")
    target.identities = {
        file_id: trees.Identity(device, inode, 0) for file_id, device, inode in fields["ids"]
    }
    return Plan(
        {file_id: [Kept(*kept) for kept in ranges] for file_id, ranges in fields["ranges"]},
        dict(fields["sizes"]),
        {file_id: dict(map(tuple, xattrs)) for file_id, xattrs in fields["xattrs"]},
        dict(fields["mtimes"]),
    )


def _link_target(root_fd: int, path: bytes) -> bytes:
    above, _, name = path.rpartition(b"/")
    dir_fd = safe_paths.open_beneath(root_fd, above, safe_paths.DIR_FLAGS)
    try:
        return os.readlink(name, dir_fd=dir_fd)
    finally:
        os.close(dir_fd)
