"""What a fenced reign left on this agent's disk, given to those who take its directory back.

The spool may hold frames that no stream ever stored, and the saved tree knows which inode was which file. Both are
copied out, never moved: the agent may have to find its place by them again.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from diffkeeper import atomic_files
from diffkeeper.domain import frames, positions
from diffkeeper.tree_store import TreeStore
from diffkeeper_capture import volume_state
from diffkeeper_capture.spool import Spool
from diffkeeper_capture.volume_order import VolumeFiles

# As a replicator reads them: each frame's length, then its wire form.
_LENGTH = struct.Struct("<I")


def export(files: VolumeFiles, epoch: int, parent: positions.Position, spool_bytes: int) -> dict[str, Any]:
    """``{tail, frames, tree_state}``: files, or null where there is nothing. Blocking; again gives the same."""
    if not files.spool.is_dir():
        return {"tail": None, "frames": 0, "tree_state": _export_tree(files, epoch)}
    spool = Spool.open(files.spool, spool_bytes)
    try:
        tail = [frame for frame in spool.frames_after(parent) if frame.position.epoch == epoch]
    finally:
        spool.close()
    path = files.directory / f"left-{epoch}.frames"
    _write(path, tail)
    return {
        "tail": str(path) if tail else None,
        "frames": len(tail),
        "tree_state": _export_tree(files, epoch),
    }


def _write(path: Path, tail: list[frames.Frame]) -> None:
    with open(path, "wb") as file:
        for frame in tail:
            file.write(_LENGTH.pack(len(frame.wire)) + frame.wire)
        file.flush()
        os.fsync(file.fileno())
    atomic_files.fsync_directory(path.parent)


def _export_tree(files: VolumeFiles, epoch: int) -> str | None:
    """The last tree that was kept, as the file that a role is handed over with."""
    if not files.tree_store.exists():
        return None
    store = TreeStore.open(files.tree_store)
    try:
        state = store.load()
    finally:
        store.close()
    path = files.directory / f"left-{epoch}.state"
    volume_state.save(path, state)
    return str(path)
