"""A branch beside the main line: which files differ, in which ranges, with the bytes of both.

The branch is what its changes say, over the parent; the main line is this site's directory as it stands. Bytes of the
parent that neither of them holds are read backward out of the journal, for one file at a time.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, positions, trees
from diffkeeper_replicator import parents, safe_paths
from diffkeeper_replicator.backward import Images
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.orphan_branches import Branch, Change

# Of one answer.
CONTENT_MAX_BYTES = 256 * 1024
_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """A range in which the two differ; shorter bytes where one ends, None where they were not asked for."""

    offset: int
    length: int
    branch: bytes | None
    main: bytes | None


@dataclass(frozen=True, slots=True)
class Compared:
    change: Change
    # Of the main line now; None where it has no such file.
    main_size: int | None
    # The main line touched the file after the parent.
    main_changed: bool
    pieces: Sequence[Piece]


def selected(changes: Iterable[Change], path: bytes | None) -> list[Change]:
    """The changes of a path, or of what is below it."""
    if path is None:
        return list(changes)
    found = [
        change
        for change in changes
        if change.path == path or change.before == path or change.path.startswith(path + b"/")
    ]
    if not found:
        raise errors.NotFound(
            f"the branch does not change {os.fsdecode(path)!r}",
            reason="unknown-path",
            hint="dkctl diff VOLUME branch:NAME main --stat lists what it changes",
        )
    return found


def compare(
    branch: Branch,
    changes: Sequence[Change],
    root: Path,
    journal: Journal,
    tree: trees.Tree | None,
    *,
    content: bool,
) -> list[Compared]:
    """Blocking; the directory at ``root`` should stand still meanwhile."""
    both = {id(change) for change in changed_in_main(branch, changes, journal, tree)}
    room = CONTENT_MAX_BYTES if content else 0
    root_fd = safe_paths.open_root(root)
    try:
        found = []
        for change in changes:
            one = _compare_one(branch, change, root_fd, id(change) in both, room)
            room -= sum(len(piece.branch or b"") for piece in one.pieces)
            found.append(one)
        return found
    finally:
        os.close(root_fd)


def _compare_one(branch: Branch, change: Change, root_fd: int, changed: bool, room: int) -> Compared:
    is_file = change.node == "file" and change.kind != "removed"
    fd, size = _open_main(root_fd, change)
    try:
        pieces: list[Piece] = []
        for kept in change.ranges if is_file else ():
            ours = branch.read(kept)
            theirs = os.pread(fd, kept.length, kept.offset) if fd >= 0 else b""
            for low, high in differing(ours, theirs):
                shown = high - low <= room
                room -= high - low if shown else 0
                pieces.append(
                    Piece(
                        kept.offset + low,
                        high - low,
                        ours[low:high] if shown else None,
                        theirs[low:high] if shown else None,
                    )
                )
        return Compared(change, size, changed, pieces)
    finally:
        if fd >= 0:
            os.close(fd)


def _open_main(root_fd: int, change: Change) -> tuple[int, int | None]:
    path = change.before if change.before is not None else change.path
    try:
        fd = safe_paths.open_beneath(
            root_fd, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        )
    except OSError:
        return -1, None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        return -1, None
    return fd, found.st_size


def differing(one: bytes, other: bytes) -> list[tuple[int, int]]:
    """The ranges of ``one`` that are other bytes there, to the byte at both ends; a gap of less than a block joins
    them.
    """
    found: list[tuple[int, int]] = []
    for begin in range(0, len(one), _BLOCK_BYTES):
        ours, theirs = one[begin : begin + _BLOCK_BYTES], other[begin : begin + _BLOCK_BYTES]
        if ours == theirs:
            continue
        low = next(i for i in range(len(ours)) if i >= len(theirs) or ours[i] != theirs[i])
        high = next(i + 1 for i in range(len(ours) - 1, -1, -1) if i >= len(theirs) or ours[i] != theirs[i])
        if found and begin + low - found[-1][1] < _BLOCK_BYTES:
            found[-1] = (found[-1][0], begin + high)
        else:
            found.append((begin + low, begin + high))
    return found


def changed_in_main(
    branch: Branch, changes: Sequence[Change], journal: Journal, tree: trees.Tree | None
) -> list[Change]:
    """Those that the main line changed since the parent too: frames name their ids, or something else stands under
    their names by now. All of them where the log does not go back so far. ``tree``: the names of the main line; None
    where they are not known.
    """
    touched = parents.touched_since(
        branch.note.volume, _volume_folder(branch), journal, positions.parse(branch.note.parent)
    )
    return [
        change
        for change in changes
        if touched is None
        or change.file_id in touched
        or (tree is not None and _stands_otherwise(tree, change))
    ]


def _stands_otherwise(tree: trees.Tree, change: Change) -> bool:
    if change.before is None:
        return tree.walk(change.path) is not None
    return tree.walk(change.before) != change.file_id


def check_untouched(both: Sequence[Change]) -> None:
    """Raises Refused ``changed-since`` with the list when the main line changed any of the files too."""
    paths = sorted({os.fsdecode(change.path) for change in both})
    if paths:
        raise errors.Refused(
            f"{len(paths)} of the files were changed in the main line too: {', '.join(paths[:20])}; nothing was taken",
            reason="changed-since",
            hint="take the branch's version into a directory of its own (--to DIR) and compare",
            paths=", ".join(paths),
        )


def write_out(branch: Branch, changes: Sequence[Change], journal: Journal, into: Path) -> list[str]:
    """The branch's version of these paths into a new or empty directory; the paths written. Blocking.

    A file is the parent's content, read out of the journal, with the branch's ranges over it.
    """
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise errors.Refused(
            f"{into} exists and is not an empty directory; nothing was written",
            reason="target-not-empty",
            hint="name a new directory",
        )
    into.mkdir(parents=True, exist_ok=True)
    parent = frames.Tip(positions.parse(branch.note.parent), bytes.fromhex(branch.note.parent_hash))
    made: dict[int, Path] = {}
    told: list[str] = []
    for change in changes:
        if change.kind == "removed":
            continue
        target = into / os.fsdecode(change.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if change.node == "dir":
            target.mkdir(exist_ok=True)
        elif change.node == "symlink":
            os.symlink(change.target, target)
        elif change.node == "file":
            target.touch(exist_ok=False)
            if change.before is not None:
                made[change.file_id] = target
        else:
            continue
        told.append(os.fsdecode(change.path))
    _write_parents(branch, made, journal, parent)
    for change in changes:
        target = into / os.fsdecode(change.path)
        if change.kind != "removed" and change.node == "file":
            _overlay(branch, change, target, made.get(change.file_id, target))
        if change.kind != "removed" and change.node in ("file", "dir", "symlink"):
            _own(change, target)
    atomic_files.fsync_directory(into)
    return told


def _own(change: Change, target: Path) -> None:
    if os.geteuid() == 0:
        os.chown(target, change.uid, change.gid, follow_symlinks=False)
    if change.node != "symlink":
        os.chmod(target, change.mode & 0o777)


def _volume_folder(branch: Branch) -> Path:
    """Of the volume, below the replicator's directory; its orphan branches have a folder each in one folder there."""
    return branch.directory.parent.parent


def _write_parents(branch: Branch, made: dict[int, Path], journal: Journal, parent: frames.Tip) -> None:
    if not made:
        return
    opened = {file_id: os.open(path, os.O_WRONLY | os.O_CLOEXEC) for file_id, path in made.items()}
    try:
        images = Images(set(opened))
        for piece in parents.pieces(images, branch.note.volume, _volume_folder(branch), journal, parent):
            if piece.data is not None:
                _write_all(opened[piece.file_id], piece.data, piece.offset)
        for file_id, image in images.images.items():
            os.ftruncate(opened[file_id], image.size or 0)
    finally:
        for fd in opened.values():
            os.close(fd)


def _overlay(branch: Branch, change: Change, target: Path, parent: Path) -> None:
    if parent != target:
        shutil.copyfile(parent, target)
    fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if change.size >= 0:
            os.ftruncate(fd, change.size)
        for kept in change.ranges:
            _write_all(fd, memoryview(branch.read(kept)), kept.offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
