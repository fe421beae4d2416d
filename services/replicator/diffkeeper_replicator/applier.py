"""Applies the deltas of frames to a directory.

Each naming delta is first taken by the tree, which refuses contradictions, and only then done on disk. Runs
of writes go through a short loop over the columns. What was done of a frame is remembered, so that after a
Transient error (disk full) the same frame goes on where it stopped. Any other error leaves the directory as
it is and means: stop this volume.

Nothing here is synced: the journal has every frame, and ``reconcile`` brings a directory of unknown age to
the journal's end.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from diffkeeper.domain import deltas, trees
from diffkeeper.domain.deltas import Delta, Op
from diffkeeper_replicator import naming, safe_paths
from diffkeeper_replicator.graves import Graves
from diffkeeper_replicator.handles import DEAD, Handles

# One write of more than this leaves the file in the page cache in pieces so large that each later write of a few
# kilobytes into it costs several times as much (ext4 looks at every block of a piece).
_CALL_MAX_BYTES = 256 * 1024

_NOT_A_WRITE = re.compile(rb"[^\x02]")
assert int(Op.WRITE) == 2, "the pattern above names WRITE"
_NAMING = frozenset(int(op) for op in deltas.NAMING)
_TIMES = frozenset({"atime_ns", "mtime_ns"})
_WITH_ARGS = frozenset(int(op) for op in deltas.WITH_ARGS)


class Applier:
    """Owns the tree, the identities and the open descriptors of one replica directory. One thread."""

    def __init__(
        self,
        root_fd: int,
        tree: trees.Tree,
        identities: dict[int, trees.Identity],
        *,
        allow_setid: bool = False,
    ) -> None:
        self.tree = tree
        self.identities = identities
        self.handles = Handles(root_fd, tree, identities)
        # While somebody wants to know: ids whose node, identity or content may have changed.
        self.touched: set[int] | None = None
        # What could not be carried over and was passed by, by cause; told in the status.
        self.notes: Counter[str] = Counter()
        self._names = naming.Namer(tree, identities, self.handles, allow_setid)
        self._resume: _Progress | None = None

    def apply(self, columns: deltas.Columns) -> None:
        """All deltas of one frame, in order.

        Raises Transient when the disk is full (call again with the same columns) and Corrupt for a
        contradiction or a directory that something else changed; then what came before the refused delta is
        applied, and nothing after it.
        """
        progress = self._resume or _Progress()
        self._resume = progress
        if self.touched is not None:
            self.touched.update(columns.file_ids)
        ops, count = columns.ops, len(columns)
        data = memoryview(columns.data)
        args = iter(columns.args[progress.args :])
        while progress.index < count:
            op = ops[progress.index]
            if op == 2:
                other = _NOT_A_WRITE.search(ops, progress.index)
                self._write_run(columns, data, other.start() if other else count, progress)
                continue
            self._other(op, columns, args, progress)
            progress.index += 1
            progress.named = None
            if op in _WITH_ARGS:
                progress.args += 1
        self._resume = None

    def apply_content(self, columns: deltas.Columns) -> None:
        """Only bytes, times and extended attributes, of ids that live in the tree; names, modes and owners
        are for ``layout``.
        """
        data = memoryview(columns.data)
        args = iter(columns.args)
        progress = _Progress()
        while progress.index < len(columns):
            op = columns.ops[progress.index]
            if op == 2:
                other = _NOT_A_WRITE.search(columns.ops, progress.index)
                self._write_run(columns, data, other.start() if other else len(columns), progress)
                continue
            packed: Any = next(args) if op in _WITH_ARGS else None
            file_id = columns.file_ids[progress.index]
            if op not in _NAMING and file_id in self.tree.nodes:
                if op == Op.ATTR:
                    packed = [{key: value for key, value in packed[0].items() if key in _TIMES}]
                self._content(op, columns, progress.index, packed)
            progress.index += 1

    def bury_in(self, graves: Graves | None, keep_below: int) -> None:
        """From now on a file with an id below ``keep_below`` is kept when its last name goes."""
        self._names.graves, self._names.keep_below = graves, keep_below

    def close(self) -> None:
        self.handles.close()

    # -- inside ----------------------------------------------------------------------------------------------

    def _other(self, op: int, columns: deltas.Columns, args: Iterator[Any], progress: _Progress) -> None:
        index = progress.index
        packed: Any = next(args) if op in _WITH_ARGS else None
        if op not in _NAMING:
            self._content(op, columns, index, packed)
            return
        if progress.named is None:
            prepared = self._names.prepare(Delta(Op(op), columns.file_ids[index], args=tuple(packed)))
            if self.touched is not None and op == Op.RENAME:
                replaced = self.tree.child(packed[2], packed[3])
                self.touched.update(() if replaced is None else (replaced,))
            self.tree.apply(prepared.delta)
            progress.named = prepared
        self._names.perform(progress.named)

    def _content(self, op: int, columns: deltas.Columns, index: int, packed: Any) -> None:
        file_id = columns.file_ids[index]
        try:
            match op:
                case Op.TRUNCATE:
                    fd = self.handles.file(file_id)
                    if fd != DEAD:
                        os.ftruncate(fd, columns.offsets[index])
                case Op.PUNCH:
                    fd = self.handles.file(file_id)
                    if fd != DEAD:
                        safe_paths.punch(fd, columns.offsets[index], columns.lengths[index])
                case Op.ATTR:
                    self._names.set_attributes(file_id, packed[0])
                case Op.XATTR:
                    note = self._names.set_xattr(file_id, packed[0], packed[1])
                    if note:
                        self.notes[note] += 1
                case Op.BARRIER | Op.GAP:
                    pass
                case _:
                    raise AssertionError(f"operation {op} passed the decoder")
        except OSError as error:
            raise safe_paths.disk_error(error, f"{Op(op).name.lower()} of file id {file_id}") from error

    def _write_run(self, columns: deltas.Columns, data: memoryview, end: int, progress: _Progress) -> None:
        """Writes ``progress.index`` to ``end``; neighbours that continue each other in one file become one
        call.

        The hot loop of a replica: local names, no objects but the slices. On an error progress stands at a
        write not yet done.
        """
        files, most = self.handles.files, _CALL_MAX_BYTES
        index = first = progress.index
        at = begin = progress.data
        open_id, fd, start, stop = 0, DEAD, 0, 0
        try:
            for file_id, offset, length in zip(
                columns.file_ids[first:end],
                columns.offsets[first:end],
                columns.lengths[first:end],
                strict=True,
            ):
                if file_id != open_id or offset != stop or at - begin >= most:
                    if fd != DEAD and at > begin:
                        _write(fd, data[begin:at], start)
                    progress.index, progress.data = index, at
                    if file_id != open_id:
                        fd = files.get(file_id, DEAD)
                        if fd == DEAD:
                            fd = self.handles.file(file_id)
                        open_id = file_id
                    begin, start, stop = at, offset, offset
                index += 1
                at += length
                stop += length
            if fd != DEAD and at > begin:
                _write(fd, data[begin:at], start)
        except OSError as error:
            raise safe_paths.disk_error(error, f"writing {at - begin} bytes to file id {open_id}") from error
        progress.index, progress.data = index, at


class _Progress:
    """How far a frame has been applied: indexes of the next delta, its data and its arguments."""

    __slots__ = ("args", "data", "index", "named")

    def __init__(self) -> None:
        self.index = 0
        self.data = 0
        self.args = 0
        # Set while the tree has taken the delta at ``index`` and the disk has not.
        self.named: naming.Prepared | None = None


def _write(fd: int, chunk: memoryview, offset: int) -> None:
    """All of it. A write that was cut short (a full disk, usually) goes on until it is done or fails with its cause."""
    size = len(chunk)
    if size <= _CALL_MAX_BYTES and os.pwrite(fd, chunk, offset) == size:
        return
    done = 0
    while done < size:
        done += os.pwrite(fd, chunk[done : done + _CALL_MAX_BYTES], offset + done)
