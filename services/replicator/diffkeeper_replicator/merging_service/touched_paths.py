"""Which paths of the site's directory programs have touched, and where in the files, out of the captured log.

The log names files by ids, so the tree of ids is kept along with it, in memory, and now and then on disk with
the place in the stream it belongs to. What the log says is a hint where to look, and no more: a log that
contradicts itself makes for a look at everything.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from diffkeeper import atomic_files
from diffkeeper.domain import deltas, errors, frames, positions, trees
from diffkeeper.domain.deltas import Op
from diffkeeper_replicator.merging_service import written
from diffkeeper_replicator.merging_service.written import Ranges

EVERYTHING = b""


class TouchedPaths:
    def __init__(self, path: Path, volume: str) -> None:
        self._path = path
        self._volume = volume
        self._tree = trees.Tree()
        # The stream's number of the last frame that was taken.
        self.sequence = 0
        self._kept_at = 0
        with contextlib.suppress(FileNotFoundError, errors.Corrupt, ValueError):
            packed = path.read_bytes()
            state = trees.decode(packed[8:])
            if state.volume == volume:
                self._tree, self.sequence = state.tree, int.from_bytes(packed[:8], "big")
                self._kept_at = self.sequence

    def take(self, sequence: int, frame: frames.Frame) -> dict[bytes, Ranges]:
        """The paths a frame touched, with what was written there; ``EVERYTHING`` among them: look at all."""
        touched: set[bytes] = set()
        ids: dict[int, Ranges] = {}
        for delta in frame.columns():
            if delta.op in (Op.BARRIER,):
                continue
            if delta.op is Op.GAP:
                touched.add(EVERYTHING)
            if delta.op in deltas.NAMING:
                touched |= self._names(delta)
                try:
                    self._tree.apply(delta)
                except errors.Corrupt:
                    touched.add(EVERYTHING)
                touched |= self._names(delta)
            else:
                ids[delta.file_id] = written.joined(ids.get(delta.file_id, []), _written(delta))
        found: dict[bytes, Ranges] = {}
        for file_id, ranges in ids.items():
            for path in self._paths(file_id):
                found[path] = written.joined(found.get(path, []), ranges)
        self.sequence = sequence
        # Another file may stand under a name that was given.
        return found | dict.fromkeys(touched)

    def _names(self, delta: deltas.Delta) -> set[bytes]:
        """The names a delta is about, as paths; before or after it was taken."""
        pairs = [delta.args[:2]] + ([delta.args[2:4]] if delta.op is Op.RENAME else [])
        found: set[bytes] = set()
        for parent, name in pairs:
            above = self._tree.path(parent)
            if above is not None:
                found.add(above + b"/" + name if above else name)
        return found

    def _paths(self, file_id: int) -> set[bytes]:
        node = self._tree.nodes.get(file_id)
        found: set[bytes] = set()
        for parent, name in node.entries if node is not None else ():
            above = self._tree.path(parent)
            if above is not None:
                found.add(above + b"/" + name if above else name)
        return found

    def keep(self) -> None:
        """On disk, so that a restart need not read the log from its first frame."""
        if self.sequence == self._kept_at:
            return
        state = trees.TreeState(self._volume, positions.START, frames.NO_HASH, 0, self._tree, {})
        atomic_files.write_bytes(self._path, self.sequence.to_bytes(8, "big") + trees.encode(state))
        self._kept_at = self.sequence


def _written(delta: deltas.Delta) -> Ranges:
    match delta.op:
        case Op.WRITE | Op.PUNCH:
            return [(delta.offset, delta.length)]
        case Op.TRUNCATE:
            return [(delta.offset, written.TO_THE_END)]
        case Op.ATTR | Op.XATTR:
            return []
        case _:
            return None
