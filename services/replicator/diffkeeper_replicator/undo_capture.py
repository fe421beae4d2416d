"""What a run of frames is about to take away from a directory, read before it does.

``plan`` is pure: which ids and ranges the run touches, looked at once for the whole run. ``capture`` reads the old
bytes of those ranges, and nothing else, from the files as they stand.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from diffkeeper.domain import deltas, frames, trees
from diffkeeper.domain.deltas import Op
from diffkeeper_replicator.applier import Applier
from diffkeeper_replicator.handles import DEAD
from diffkeeper_replicator.undo_records import OldBytes, OldFile, OldNode, Record, Span

_NOT_A_WRITE = re.compile(rb"[^\x02]")
_MAKING = frozenset({Op.CREATE, Op.MKDIR, Op.SYMLINK, Op.MKFIFO})
# An operation that is added later ends the chain of records until somebody thought about it.
_UNDERSTOOD = re.compile(rb"[\x01-\x0f]*")
# Beyond every file: what a truncation takes away.
_END = 1 << 63
# From here on holes are asked for and not read as zeros.
_ASK_FOR_HOLES_BYTES = 64 * 1024
# Read at once: small enough that compressing it finds it in the processor's cache.
_READ_BYTES = 128 * 1024
# Between two ranges so much is read and dropped, because another call costs more.
_GAP_MAX_BYTES = 4096


@dataclass(slots=True)
class Plan:
    # id → ranges [start, end) of files that live before the run, in the order in which they are touched.
    ranges: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    # Ids, living before the run, whose names or attributes it touches.
    nodes: set[int] = field(default_factory=set)
    born: list[int] = field(default_factory=list)
    xattrs: set[tuple[int, bytes]] = field(default_factory=set)
    # Of ``nodes``: those that may lose their last name.
    going: set[int] = field(default_factory=set)
    # Names that the run itself has given, for what a later rename replaces.
    _placed: dict[tuple[int, bytes], int] = field(default_factory=dict)

    def place(self, parent: int, name: bytes, file_id: int) -> None:
        self._placed[parent, name] = file_id

    def standing(self, tree: trees.Tree, parent: int, name: bytes) -> int | None:
        """Who may stand there by now."""
        return self._placed.get((parent, name), tree.child(parent, name))


def plan(tree: trees.Tree, run: Iterable[deltas.Columns]) -> Plan:
    """What the run touches of what ``tree`` has now. A name that a rename takes over belongs to an id that stands there
    now, or that the run itself moved or made there: so looking at names as they are now finds all.
    """
    found = Plan()
    only_content = True
    for columns in run:
        _plan_ranges(found.ranges, columns)
        if _NOT_A_WRITE.search(columns.ops) is not None:
            only_content = False
            _plan_others(found, tree, columns)
    living = tree.nodes
    for file_id in [one for one in found.ranges if not _is_file(living.get(one))]:
        del found.ranges[file_id]
    if not only_content:
        found.nodes &= living.keys()
        found.going &= found.nodes
        found.xattrs = {(file_id, name) for file_id, name in found.xattrs if file_id in living}
    return found


def _is_file(node: trees.Node | None) -> bool:
    return node is not None and node.kind is trees.Kind.FILE


def _plan_ranges(ranges: dict[int, list[tuple[int, int]]], columns: deltas.Columns) -> None:
    """Writes, cuts and holes; writes that go on where the one before ended become one range."""
    open_id, stop, begin = 0, -1, 0
    for op, file_id, offset, length in zip(
        columns.ops, columns.file_ids, columns.offsets, columns.lengths, strict=True
    ):
        if op > 4 or op < 2:
            continue
        if op == 3:
            length = _END - offset
        if file_id == open_id and offset == stop:
            stop += length
            continue
        if stop > begin:
            ranges.setdefault(open_id, []).append((begin, stop))
        open_id, begin, stop = file_id, offset, offset + length
    if stop > begin:
        ranges.setdefault(open_id, []).append((begin, stop))


assert (Op.WRITE, Op.TRUNCATE, Op.PUNCH) == (2, 3, 4), "the loop above names them"


def _plan_others(found: Plan, tree: trees.Tree, columns: deltas.Columns) -> None:
    waiting = iter(columns.args)
    for op_number, file_id in zip(columns.ops, columns.file_ids, strict=True):
        if op_number == 2 or op_number not in deltas.WITH_ARGS:
            continue
        op, args = Op(op_number), next(waiting)
        if op is Op.XATTR:
            found.xattrs.add((file_id, args[0]))
        elif op is Op.ATTR:
            found.nodes.add(file_id)
        elif op in deltas.NAMING:
            _plan_names(found, tree, op, file_id, args)


def _plan_names(found: Plan, tree: trees.Tree, op: Op, file_id: int, args: list[Any]) -> None:
    if op in _MAKING:
        found.born.append(file_id)
    else:
        found.nodes.add(file_id)
    if op in (Op.UNLINK, Op.RMDIR):
        found.going.add(file_id)
    elif op is Op.RENAME:
        replaced = found.standing(tree, args[2], args[3])
        if replaced is not None:
            found.nodes.add(replaced)
            if args[4]:
                found.place(args[0], args[1], replaced)
            else:
                found.going.add(replaced)
        found.place(args[2], args[3], file_id)
    else:
        found.place(args[0], args[1], file_id)


def capture(
    applier: Applier,
    run: list[deltas.Columns],
    before: frames.Tip,
    stamp: int,
    after: frames.Tip,
    old_bytes: OldBytes,
) -> Record | None:
    """The record of a run that was not begun yet, its old bytes in ``old_bytes``; None when it takes more away than a
    record may hold, or has an operation that is not known here.

    Raises OSError, and what opening a file of the replica raises.
    """
    for columns in run:
        if _UNDERSTOOD.fullmatch(columns.ops) is None:
            return None
    tree = applier.tree
    planned = plan(tree, run)
    graves = tuple((file_id, applier.identities[file_id].inode) for file_id in sorted(planned.going))
    record = Record(Span(before, stamp, after, graves), tree.next_id, born=planned.born)
    for file_id in sorted(planned.nodes):
        node = tree.nodes[file_id]
        record.nodes[file_id] = OldNode(
            node.kind, node.mode, node.uid, node.gid, node.target, tuple(sorted(node.entries))
        )
    record.xattrs = [
        (file_id, name, _xattr(applier, file_id, name)) for file_id, name in sorted(planned.xattrs)
    ]
    whole = all(
        _read_file(applier, file_id, ranges, record, old_bytes) for file_id, ranges in planned.ranges.items()
    )
    return record if whole else None


def _xattr(applier: Applier, file_id: int, name: bytes) -> bytes | None:
    """One extended attribute of an id; None where there is none."""
    kind = applier.tree.nodes[file_id].kind
    if kind is trees.Kind.DIR:
        fd = applier.handles.directory(file_id)
    elif kind is trees.Kind.FILE:
        fd = applier.handles.file(file_id)
    else:
        return None
    try:
        return os.getxattr(fd, name)
    except OSError:
        return None  # not there, or of a kind that is never set here either


def joined(ranges: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """The union of ranges below ``size``, rising."""
    if len(ranges) > 1:
        ranges.sort()
    union: list[tuple[int, int]] = []
    begin, stop = ranges[0]
    for start, end in ranges:
        if start > stop:
            if begin >= size:
                return union
            union.append((begin, stop if stop < size else size))
            begin = start
        if end > stop:
            stop = end
    if begin < size:
        union.append((begin, stop if stop < size else size))
    return union


def _read_file(
    applier: Applier, file_id: int, touched: list[tuple[int, int]], record: Record, old_bytes: OldBytes
) -> bool:
    """What a file has where the run touches it; False when there is no room for so much. Neighbours share a call."""
    fd = applier.handles.file(file_id)
    assert fd != DEAD, "the plan has only ids that live"
    found = os.fstat(fd)
    old = OldFile(file_id, found.st_size, found.st_mtime_ns)
    record.files.append(old)
    ranges = joined(touched, found.st_size)
    count = len(ranges)
    first = 0
    while first < count:
        begin, end = ranges[first]
        if end - begin >= _ASK_FOR_HOLES_BYTES:
            if not _read_wide(fd, begin, end, old, old_bytes):
                return False
            first += 1
            continue
        last = first + 1
        while last < count:
            start, stop = ranges[last]
            if start - end > _GAP_MAX_BYTES or stop - begin > _ASK_FOR_HOLES_BYTES:
                break
            end = stop
            last += 1
        chunk = _pread(fd, begin, end)
        for start, stop in ranges[first:last]:
            _keep(start, chunk if last == first + 1 else chunk[start - begin : stop - begin], old, old_bytes)
        if old_bytes.left < 0:
            return False
        first = last
    return True


def _read_wide(fd: int, start: int, end: int, old: OldFile, old_bytes: OldBytes) -> bool:
    """The same of one long range, holes as zeros."""
    while start < end:
        data, stop = _data_from(fd, start, end)
        if data > start:
            old.add(start, data - start, zero=True)
            start = data
        if old_bytes.left < stop - start:
            return False
        while start < stop:
            upto = min(stop, start + _READ_BYTES)
            _keep(start, _pread(fd, start, upto), old, old_bytes)
            start = upto
    return True


def _keep(offset: int, chunk: bytes, old: OldFile, old_bytes: OldBytes) -> None:
    size = len(chunk)
    zero = chunk[0] == 0 and chunk == bytes(size)
    old.add(offset, size, zero=zero)
    old_bytes.left -= size
    if not zero:
        old_bytes.put(chunk)


def _pread(fd: int, start: int, end: int) -> bytes:
    chunk = os.pread(fd, end - start, start)
    while len(chunk) < end - start:
        more = os.pread(fd, end - start - len(chunk), start + len(chunk))
        if not more:
            raise OSError(errno.EIO, "a file ended before its size")
        chunk += more
    return chunk


def _data_from(fd: int, start: int, end: int) -> tuple[int, int]:
    """Where the first data at or after ``start`` begins and ends, within ``end``."""
    try:
        data = os.lseek(fd, start, os.SEEK_DATA)
    except OSError:
        return end, end  # only a hole is left
    if data >= end:
        return end, end
    return data, min(end, os.lseek(fd, data, os.SEEK_HOLE))
