"""A follower that journalled frames the chain goes on without: its tail becomes a branch, its directory goes back.

Undo records make this cost what the tail changed. The order makes it safe to break off anywhere: the journal keeps the
tail until the branch is whole, and beginning again first brings the directory to the journal's end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import structlog

from diffkeeper.domain import errors, frames, trees
from diffkeeper_replicator import directory as directories
from diffkeeper_replicator import orphan_branches, reclaim, safe_paths, undo, undo_capture
from diffkeeper_replicator.cursor import VolumeFiles
from diffkeeper_replicator.directory import Directory
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.orphan_branches import Change, Kept, Note, Writer

_log = structlog.get_logger("replica")
_READ_BYTES = 1 << 20


# Where undo does not lead back, comparing with the journal does.
_NOT_BY_UNDO = frozenset(
    {"undo-out-of-reach", "undo-damaged", "undo-incomplete", "rewind-broken", "tree-state-missing"}
)


def leave_tail(
    files: VolumeFiles,
    path: Path,
    journal: Journal,
    parent: frames.Tip,
    note: Note,
    tail: Sequence[frames.Frame],
    *,
    allow_setid: bool,
) -> None:
    """Bring a directory and its journal back to ``parent``, by undo or else by comparing with the journal. Blocking;
    again after a crash.
    """
    try:
        opened = directories.open_or_begin(files, note.volume, path, journal, allow_setid=allow_setid)
        clean = False
        try:
            step_back(files, opened, journal, parent, note)
            clean = True
        finally:
            opened.close(clean=clean)
    except errors.DiffKeeperError as error:
        if error.reason not in _NOT_BY_UNDO:
            raise
        _log.warning("going back by comparing with the journal", why=error.message)
        found = msgspec.structs.replace(note, name=f"{note.name}-found")
        left = reclaim.Left(found, tail, {})
        taken = reclaim.reclaim(files.orphans, path, journal, parent, left, allow_setid=allow_setid)
        marker = f"compared@{parent.position}"
        directories.take_over(
            files, path, taken.state, taken.base_end, marker, allow_setid=allow_setid
        ).close(clean=True)
        reclaim.done(files.orphans, found.name)
        journal.cut_after(parent.position)


def step_back(
    files: VolumeFiles, directory: Directory, journal: Journal, parent: frames.Tip, note: Note
) -> None:
    """Bring directory and journal back to ``parent``; what was beyond is the branch ``note.name``. Blocking.

    Raises Refused ``undo-out-of-reach`` with nothing changed, and what rewinding raises.
    """
    tail = list(journal.frames_after(parent.position))
    floor = directory.undo.floor
    if directory.tip.position > parent.position and (floor is None or floor > parent.position):
        raise undo.out_of_reach(parent.position, floor)
    for frame in journal.frames_after(directory.tip.position):
        columns = frame.columns()
        directory.cover([(frame, columns)])
        directory.apply(frame, columns)
    writer = Writer(files.orphans / note.name, note)
    try:
        tip = directory.tree()
        contents = _contents(directory, tip, tail, writer)
        directory.rewind(parent.position, journal)
        writer.finish(_changes(tip, directory.tree(), contents), tail)
    finally:
        writer.abandon()
    journal.cut_after(parent.position)
    _log.warning(
        "a tail beyond the parent became a branch", branch=note.name, frames=len(tail), parent=note.parent
    )


def _contents(
    directory: Directory, tree: trees.Tree, tail: Sequence[frames.Frame], writer: Writer
) -> dict[int, tuple[int, list[Kept]]]:
    """id → (size, ranges) of the files that the tail touched, as they are at its end."""
    planned = undo_capture.plan(tree, [frame.columns() for frame in tail])
    found: dict[int, tuple[int, list[Kept]]] = {}
    for file_id in planned.ranges.keys() | set(planned.born):
        node = tree.nodes.get(file_id)
        path = tree.path(file_id)
        if node is None or node.kind is not trees.Kind.FILE or path is None:
            continue
        fd = safe_paths.open_beneath(directory.root_fd, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if file_id in planned.born:
                ranges = orphan_branches.copy_file(writer, fd, size)
            else:
                ranges = list(_read(fd, size, planned.ranges[file_id], writer))
        finally:
            os.close(fd)
        found[file_id] = (size, ranges)
    return found


def _read(fd: int, size: int, ranges: list[tuple[int, int]], writer: Writer) -> Iterator[Kept]:
    for start, end in undo_capture.joined(ranges, size):
        for at in range(start, end, _READ_BYTES):
            chunk = os.pread(fd, min(_READ_BYTES, end - at), at)
            yield Kept(at, len(chunk), writer.keep(chunk))


def _changes(
    tip: trees.Tree, parent: trees.Tree, contents: dict[int, tuple[int, list[Kept]]]
) -> list[Change]:
    """How the names, attributes and contents at the tail's end differ from those at the parent."""
    stood: dict[int, set[bytes]] = {}
    for path, file_id in parent.paths():
        stood.setdefault(file_id, set()).add(path)
    found: list[Change] = []
    for path, file_id in tip.paths():
        kind = _kind(tip, parent, path, file_id, stood, contents)
        before = stood.get(file_id, set())
        if kind:
            at = path if path in before else min(before, default=None)
            found.append(_change(tip, path, kind, at, file_id, contents))
        before.discard(path)
    gone = [(path, file_id) for file_id, paths in stood.items() for path in paths]
    found += [
        Change(path, "removed", path, file_id, parent.nodes[file_id].kind.name.lower())
        for path, file_id in gone
    ]
    return sorted(found, key=lambda change: change.path)


def _kind(
    tip: trees.Tree,
    parent: trees.Tree,
    path: bytes,
    file_id: int,
    stood: dict[int, set[bytes]],
    contents: dict[int, tuple[int, list[Kept]]],
) -> str:
    old, new = parent.nodes.get(file_id), tip.nodes[file_id]
    if old is None:
        return "added"
    if path not in stood.get(file_id, set()):
        return "renamed"
    if file_id in contents:
        return "changed"
    return "attributes" if (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid) else ""


def _change(
    tip: trees.Tree,
    path: bytes,
    kind: str,
    before: bytes | None,
    file_id: int,
    contents: dict[int, tuple[int, list[Kept]]],
) -> Change:
    node = tip.nodes[file_id]
    size, ranges = contents.get(file_id, (-1, []))
    word = node.kind.name.lower()
    return Change(path, kind, before, file_id, word, node.mode, node.uid, node.gid, size, node.target, ranges)
