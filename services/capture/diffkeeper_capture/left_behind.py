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
from diffkeeper_capture.spool import Spool
from diffkeeper_capture.volume_order import VolumeFiles

# As a replicator reads them: each frame's length, then its wire form.
_LENGTH = struct.Struct("<I")


def export(files: VolumeFiles, epoch: int, parent: positions.Position, spool_bytes: int) -> dict[str, Any]:
    """``{tail, frames, tree_state}``: files, or null where there is nothing. Blocking; again gives the same."""
    if not files.spool.is_dir():
        return {"tail": None, "frames": 0, "tree_state": _existing(files.tree_state)}
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
        "tree_state": _existing(files.tree_state),
    }


def _write(path: Path, tail: list[frames.Frame]) -> None:
    with open(path, "wb") as file:
        for frame in tail:
            file.write(_LENGTH.pack(len(frame.wire)) + frame.wire)
        file.flush()
        os.fsync(file.fileno())
    atomic_files.fsync_directory(path.parent)


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None
