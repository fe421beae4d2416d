"""The state of a volume at one position, without a directory: the tree, and for each file which bytes it has.

A state is the replay of the log up to its position, as exact as the applier's, but writes move addresses and
not bytes: going on by a hundred thousand deltas costs less than a second, and two states are compared by
address before any byte is read. Not for threads; ``copy`` gives a state of one's own.
"""

from __future__ import annotations

from pathlib import Path

from diffkeeper.domain import clocks, deltas, frames, positions, trees
from diffkeeper.domain.deltas import Delta, Op
from diffkeeper_replicator.contents import NOTHING, Contents, no_chunks
from diffkeeper_replicator.extents import Extents

_WITH_ARGS = frozenset(int(op) for op in deltas.WITH_ARGS)
_NAMING = frozenset(int(op) for op in deltas.NAMING)
# (atime ns, mtime ns), each None where nobody has set it.
Times = tuple[int | None, int | None]


class State:
    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.tip = frames.ORIGIN_TIP
        self.stamp = 0
        self.tree = trees.Tree()
        self.files: dict[int, Extents] = {}
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self.times: dict[int, Times] = {}
        # What it cost to come here from the checkpoint.
        self.replayed_deltas = 0
        self.replayed_bytes = 0

    @classmethod
    def empty(cls, folder: Path) -> State:
        """Before the first frame. ``folder`` is for the spill."""
        return cls(Contents(folder, NOTHING, no_chunks))

    @property
    def position(self) -> positions.Position:
        return self.tip.position

    @property
    def at_us(self) -> int:
        return clocks.to_micros(self.stamp)

    def copy(self) -> State:
        """The same state; the two share what has been read and spilled."""
        made = State(self.contents)
        made.tip, made.stamp = self.tip, self.stamp
        made.tree = self.tree.copy()
        made.files = {file_id: extents.copy() for file_id, extents in self.files.items()}
        made.xattrs = {file_id: dict(found) for file_id, found in self.xattrs.items()}
        made.times = dict(self.times)
        made.replayed_deltas, made.replayed_bytes = self.replayed_deltas, self.replayed_bytes
        return made

    def apply(self, tip: frames.Tip, stamp: int, columns: deltas.Columns, count: int | None = None) -> None:
        """One step of the log, or only its first ``count`` deltas. Raises Corrupt for a contradiction."""
        address = self.contents.add(columns.data)
        self._apply(columns, address, len(columns) if count is None else count, stamp)
        self.tip, self.stamp = tip, stamp
        self.replayed_deltas += len(columns)
        self.replayed_bytes += len(columns.data)

    def _apply(self, columns: deltas.Columns, address: int, count: int, stamp: int) -> None:
        files, args = self.files, iter(columns.args)
        written: set[int] = set()
        left = count
        for op, file_id, offset, length in zip(
            columns.ops, columns.file_ids, columns.offsets, columns.lengths, strict=True
        ):
            if left == 0:
                break
            left -= 1
            if op == 2:
                extents = files.get(file_id)
                if extents is not None:  # else it has no name any more
                    extents.write(offset, length, address)
                    written.add(file_id)
                address += length
                continue
            packed = next(args) if op in _WITH_ARGS else ()
            if op in _NAMING:
                self._name(Delta(Op(op), file_id, args=tuple(packed)))
            else:
                self._change(Delta(Op(op), file_id, offset, length, args=tuple(packed)), written)
        changed = (None, clocks.to_micros(stamp) * 1000)
        for file_id in written & files.keys():
            self.times[file_id] = changed

    def _name(self, delta: Delta) -> None:
        loses = None
        if delta.op is Op.RENAME:
            loses = self.tree.child(delta.args[2], delta.args[3])
        elif delta.op in (Op.UNLINK, Op.RMDIR):
            loses = delta.file_id
        self.tree.apply(delta)
        if delta.op is Op.CREATE:
            self.files[delta.file_id] = Extents()
        if loses is not None and loses not in self.tree.nodes:
            for kept in (self.files, self.xattrs, self.times):
                kept.pop(loses, None)

    def _change(self, delta: Delta, written: set[int]) -> None:
        extents = self.files.get(delta.file_id)
        match delta.op:
            case Op.TRUNCATE if extents is not None:
                extents.truncate(delta.offset)
                written.add(delta.file_id)
            case Op.PUNCH if extents is not None:
                extents.punch(delta.offset, delta.length)
                written.add(delta.file_id)
            case Op.ATTR if delta.file_id in self.tree.nodes:
                self.tree.apply(delta)
                attrs = delta.args[0]
                if attrs.keys() & {"atime_ns", "mtime_ns"}:
                    before = self.times.get(delta.file_id, (None, None))
                    self.times[delta.file_id] = (
                        attrs.get("atime_ns", before[0]),
                        attrs.get("mtime_ns", before[1]),
                    )
                    written.discard(delta.file_id)
            case Op.XATTR if delta.file_id in self.tree.nodes:
                name, value = delta.args
                there = self.xattrs.setdefault(delta.file_id, {})
                if value is None:
                    there.pop(name, None)
                else:
                    there[name] = value
            case _:
                pass  # barriers and gaps change nothing; what has no name any more is gone
