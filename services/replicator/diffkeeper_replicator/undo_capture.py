"""What a run of frames is about to take away from a directory, read before it does.

``plan`` is pure: which ids and ranges the run touches, looked at once for the whole run. ``capture`` reads the old
bytes of those ranges, and nothing else, from the files as they stand.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from diffkeeper.domain import deltas, frames, trees
from diffkeeper.domain.deltas import Op
from diffkeeper_replicator import undo_records
from diffkeeper_replicator.applier import Applier
from diffkeeper_replicator.handles import DEAD
from diffkeeper_replicator.undo_records import OldFile, OldNode, OldRange, Record, Span

_NOT_A_WRITE = re.compile(rb"[^\x02]")
_MAKING = frozenset({Op.CREATE, Op.MKDIR, Op.SYMLINK, Op.MKFIFO})
# An operation that is added later ends the chain of records until somebody thought about it.
_UNDERSTOOD = re.compile(rb"[\x01-\x0f]*")
# Beyond every file: what a truncation takes away.
_END = 1 << 63
# From here on holes are asked for and not read as zeros.
_ASK_FOR_HOLES_BYTES = 64 * 1024


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
    for columns in run:
        _plan_ranges(found, columns)
        if _NOT_A_WRITE.search(columns.ops) is not None:
            _plan_others(found, tree, columns)
    living = tree.nodes
    found.ranges = {
        file_id: ranges
        for file_id, ranges in found.ranges.items()
        if file_id in living and living[file_id].kind is trees.Kind.FILE
    }
    found.nodes &= living.keys()
    found.going &= found.nodes
    found.xattrs = {(file_id, name) for file_id, name in found.xattrs if file_id in living}
    return found


def _plan_ranges(found: Plan, columns: deltas.Columns) -> None:
    """Writes, cuts and holes; writes that go on where the one before ended become one range."""
    ranges = found.ranges
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
    applier: Applier, run: list[deltas.Columns], before: frames.Tip, stamp: int, after: frames.Tip
) -> Record | None:
    """The record of a run that was not begun yet; None when it takes more away than a record may hold, or
    has an operation that is not known here.

    Raises OSError, and what opening a file of the replica raises.
    """
    if any(_UNDERSTOOD.fullmatch(columns.ops) is None for columns in run):
        return None
    tree, handles = applier.tree, applier.handles
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
    parts: list[bytes] = []
    room = undo_records.RECORD_MAX_BYTES
    for file_id, ranges in planned.ranges.items():
        fd = handles.file(file_id)
        assert fd != DEAD, "the plan has only ids that live"
        found = os.fstat(fd)
        old: list[OldRange] = []
        for start, end in joined(ranges, found.st_size):
            room = _read(fd, start, end, old, parts, room)
            if room < 0:
                return None
        record.files.append(OldFile(file_id, found.st_size, found.st_mtime_ns, tuple(old)))
    record.data = b"".join(parts)
    return record


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


def joined(ranges: list[tuple[int, int]], size: int) -> Iterable[tuple[int, int]]:
    """The union of ranges below ``size``, rising."""
    if len(ranges) > 1:
        ranges.sort()
    begin, stop = ranges[0]
    for start, end in ranges:
        if start > stop:
            if begin < size:
                yield begin, min(stop, size)
            begin = start
        stop = max(stop, end)
    if begin < size:
        yield begin, min(stop, size)


def _read(fd: int, start: int, end: int, old: list[OldRange], parts: list[bytes], room: int) -> int:
    """Old bytes of [start, end), holes as zeros; the room that is left, negative when there is not enough."""
    while start < end:
        stop = end
        if end - start >= _ASK_FOR_HOLES_BYTES:
            data, stop = _data_from(fd, start, end)
            if data > start:
                old.append(OldRange(start, data - start, True))
                start = data
                continue
        room -= stop - start
        if room < 0:
            return room
        while start < stop:
            chunk = os.pread(fd, stop - start, start)
            if not chunk:
                raise OSError(5, "a file ended before its size")
            zero = chunk[0] == 0 and not chunk.strip(b"\0")
            old.append(OldRange(start, len(chunk), zero))
            if not zero:
                parts.append(chunk)
            start += len(chunk)
    return room


def _data_from(fd: int, start: int, end: int) -> tuple[int, int]:
    """Where the first data at or after ``start`` begins and ends, within ``end``."""
    try:
        data = os.lseek(fd, start, os.SEEK_DATA)
    except OSError:
        return end, end  # only a hole is left
    if data >= end:
        return end, end
    return data, min(end, os.lseek(fd, data, os.SEEK_HOLE))
