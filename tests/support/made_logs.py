"""Logs made up for tests: valid deltas from a list of numbers, and frames that hold them.

The numbers steer a little model of a program; whatever they are, the deltas never contradict the tree, so
hypothesis can shrink them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from diffkeeper.domain import deltas, errors, frames, positions, trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op

_NAMES = (b"a", b"b", b"c", b"d.wal", b"\xff\xfe", b"n" * 255)


class MadeLog:
    """Turns numbers into deltas. ``unlinked`` files go on being written to, as open files are."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)
        self.tree = trees.Tree()
        self.unlinked: list[int] = []

    def deltas(self) -> Iterator[Delta]:
        while True:
            try:
                delta = self._next()
            except StopIteration:
                return
            if delta is not None:
                self.tree.apply(delta)
                yield delta

    def _pick(self, choices: Sequence[int]) -> int:
        return choices[next(self._numbers) % len(choices)]

    def _ids(self, *kinds: trees.Kind) -> list[int]:
        return [
            file_id for file_id, node in self.tree.nodes.items() if node.kind in kinds and file_id != ROOT_ID
        ]

    def _free_entry(self) -> tuple[int, bytes] | None:
        parent = self._pick([ROOT_ID, *self._ids(trees.Kind.DIR)])
        name = _NAMES[next(self._numbers) % len(_NAMES)]
        return None if self.tree.child(parent, name) is not None else (parent, name)

    def _next(self) -> Delta | None:
        operation = next(self._numbers) % 20
        files = self._ids(trees.Kind.FILE) + self.unlinked
        if operation <= 2 or not files:
            return self._make(operation)
        if operation <= 9:
            return self._content(self._pick(files), operation)
        if operation <= 13:
            return self._rename()
        if operation <= 15:
            return self._remove()
        if operation == 16:
            entry = self._free_entry()
            linkable = self._ids(trees.Kind.FILE, trees.Kind.SYMLINK)
            return Delta(Op.LINK, self._pick(linkable), args=entry) if entry and linkable else None
        return self._attributes(operation)

    def _make(self, operation: int) -> Delta | None:
        entry = self._free_entry()
        if entry is None:
            return None
        kind, mode = next(self._numbers) % 6, (0o644, 0o600, 0o755, 0o4711)[next(self._numbers) % 4]
        file_id = self.tree.next_id
        if kind <= 2:
            return Delta(Op.CREATE, file_id, args=(*entry, mode, 0, 0))
        if kind == 3:
            return Delta(Op.MKDIR, file_id, args=(*entry, mode | 0o700, 0, 0))
        if kind == 4:
            return Delta(Op.SYMLINK, file_id, args=(*entry, b"../../etc/passwd", 0, 0))
        return Delta(Op.MKFIFO, file_id, args=(*entry, mode, 0, 0))

    def _content(self, file_id: int, operation: int) -> Delta:
        offset, length = next(self._numbers) % 9000, next(self._numbers) % 5000
        if operation == 3:
            return Delta(Op.TRUNCATE, file_id, offset)
        if operation == 4:
            return Delta(Op.PUNCH, file_id, offset, length)
        return deltas.write(file_id, offset, bytes([1 + next(self._numbers) % 255]) * length)

    def _entry(self) -> tuple[int, int, bytes] | None:
        entries = [(f, p, n) for f, node in self.tree.nodes.items() for p, n in sorted(node.entries)]
        return entries[next(self._numbers) % len(entries)] if entries else None

    def _rename(self) -> Delta | None:
        source = self._entry()
        if source is None:
            return None
        file_id, parent, name = source
        to_parent = self._pick([ROOT_ID, *self._ids(trees.Kind.DIR)])
        to_name = _NAMES[next(self._numbers) % len(_NAMES)]
        exchange = next(self._numbers) % 3 == 0 and self.tree.child(to_parent, to_name) is not None
        delta = Delta(Op.RENAME, file_id, args=(parent, name, to_parent, to_name, exchange))
        replaced = self.tree.child(to_parent, to_name)
        if not _is_allowed(self.tree, delta):
            return None
        last = (
            replaced not in (None, file_id) and not exchange and len(self.tree.nodes[replaced].entries) == 1
        )
        if last and replaced is not None and self.tree.nodes[replaced].kind is trees.Kind.FILE:
            self.unlinked.append(replaced)
        return delta

    def _remove(self) -> Delta | None:
        source = self._entry()
        if source is None:
            return None
        file_id, parent, name = source
        node = self.tree.nodes[file_id]
        if node.kind is trees.Kind.DIR:
            return None if node.children else Delta(Op.RMDIR, file_id, args=(parent, name))
        if node.kind is trees.Kind.FILE and len(node.entries) == 1:
            self.unlinked.append(file_id)
        return Delta(Op.UNLINK, file_id, args=(parent, name))

    def _attributes(self, operation: int) -> Delta | None:
        file_id = self._pick(self._ids(trees.Kind.FILE, trees.Kind.DIR, trees.Kind.FIFO) or [ROOT_ID])
        if operation == 17:
            return Delta(Op.ATTR, file_id, args=({"mode": 0o700 | next(self._numbers) % 0o100, "uid": 7},))
        if operation == 18:
            return Delta(Op.XATTR, file_id, args=(b"user.k", bytes([next(self._numbers) % 256])))
        return Delta(Op.ATTR, file_id, args=({"mtime_ns": next(self._numbers) * 10**6},))


def _is_allowed(tree: trees.Tree, delta: Delta) -> bool:
    """Whether a copy of the tree takes it."""
    state = trees.TreeState("v", positions.START, b"", 0, tree, {})
    try:
        trees.decode(trees.encode(state)).tree.apply(delta)
    except errors.Corrupt:
        return False
    return True


def columns(run: Iterable[Delta]) -> deltas.Columns:
    made = deltas.Columns()
    for delta in run:
        made.add(delta)
    return made


class FrameChain:
    """Seals deltas into frames that follow each other."""

    def __init__(
        self, volume: str = "orders", origin: str = "east", tip: frames.Tip = frames.ORIGIN_TIP
    ) -> None:
        self.volume, self.origin, self.tip, self.epoch = volume, origin, tip, max(1, tip.position.epoch)
        self._compressor = frames.Compressor()
        self._stamp = 1_700_000_000_000_000 << 12

    def frame(
        self, run: Iterable[Delta] = (), flags: frames.Flag = frames.NO_FLAGS, successor: str = ""
    ) -> frames.Frame:
        self._stamp += 4096
        frame = frames.seal(
            frames.pack(columns(run), self._compressor),
            volume=self.volume,
            origin=self.origin,
            position=positions.Position(self.epoch, self.tip.position.sequence + 1),
            parent=self.tip.position,
            parent_hash=self.tip.hash,
            first=self._stamp,
            last=self._stamp,
            flags=flags,
            successor=successor,
        )
        self.tip = frames.Tip(frame.position, frame.hash)
        return frame
